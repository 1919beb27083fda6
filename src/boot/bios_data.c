/*
 * What a BIOS would have left in low memory, for kernels that look there or call it: the real-mode interrupt vectors
 * and the BIOS data area. There is no BIOS behind them: every software interrupt returns at once with the carry flag
 * set, which its services mean by "not supported".
 */
#include "boot/loaders.h"
#include "machine/pc_addresses.h"

#define VECTORS        256u
#define DATA_AREA      0x400u
#define BIOS_SEGMENT   0xf000u
#define STUB_OFFSET    0xff53u /* where IBM's BIOS had its IRET */
#define DATA_COM       0x00u   /* four ports */
#define DATA_EBDA      0x0eu   /* segment */
#define DATA_EQUIPMENT 0x10u
#define DATA_MEMORY    0x13u /* KiB below the EBDA */
#define DATA_LENGTH    0x100u

#define EQUIPMENT_FPU   0x0002u
#define EQUIPMENT_MOUSE 0x0004u
#define EQUIPMENT_COM4  0x0800u /* bits 11:9: four serial ports */

/* push bp; mov bp, sp; or byte [bp + 6], 1; pop bp; iret: sets CF in the caller's flags. */
static const uint8_t stub[] = {0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf};

int boot_write_bios_data(struct boot_context *boot)
{
	static const uint16_t ports[] = {PC_PORT_COM1, PC_PORT_COM2, PC_PORT_COM3, PC_PORT_COM4};
	uint8_t vectors[VECTORS * 4], data[DATA_LENGTH] = {0}, ebda[16] = {1}; /* its length in KiB */
	int error;

	for (unsigned i = 0; i < VECTORS; i++)
		put32(vectors + i * 4, BIOS_SEGMENT << 16 | STUB_OFFSET);
	for (unsigned i = 0; i < sizeof(ports) / sizeof(ports[0]); i++)
		put16(data + DATA_COM + i * 2, ports[i]);
	put16(data + DATA_EBDA, PC_EBDA >> 4);
	put16(data + DATA_EQUIPMENT, EQUIPMENT_FPU | EQUIPMENT_MOUSE | EQUIPMENT_COM4);
	put16(data + DATA_MEMORY, PC_EBDA >> 10);
	error = boot_write(boot, 0, vectors, sizeof(vectors));
	if (!error)
		error = boot_write(boot, DATA_AREA, data, sizeof(data));
	if (!error)
		error = boot_write(boot, PC_EBDA, ebda, sizeof(ebda));
	return error ? error : boot_write(boot, (BIOS_SEGMENT << 4) + STUB_OFFSET, stub, sizeof(stub));
}
