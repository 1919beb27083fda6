/*
 * The PC's map: every fixed port, memory address and interrupt of the machine in one place. Chips take their base from
 * machine/pc.c, which takes it from here; the loader's tables (E820, ACPI) and src/boot/dsdt.asl, which is preprocessed
 * with this header, say the same to the guest.
 *
 * Only object-like macros with plain numbers, and no #pragma once: the ASL compiler's preprocessor reads this file too.
 */
#ifndef MACHINE_PC_ADDRESSES_H
#define MACHINE_PC_ADDRESSES_H

/* Ports. */
#define PC_PORT_DMA1         0x0000 /* 8237A, channels 0-3 */
#define PC_PORT_PIC1         0x0020
#define PC_PORT_PIT          0x0040
#define PC_PORT_KBC_DATA     0x0060
#define PC_PORT_SPEAKER      0x0061 /* system control port B */
#define PC_PORT_KBC_COMMAND  0x0064
#define PC_PORT_RTC          0x0070 /* index, data */
#define PC_PORT_POST         0x0080 /* diagnostic codes, I/O delay */
#define PC_PORT_DMA_PAGE     0x0081
#define PC_PORT_SYSTEM_A     0x0092 /* system control port A: A20, fast reset */
#define PC_PORT_PIC2         0x00a0
#define PC_PORT_DMA2         0x00c0
#define PC_PORT_DEBUGCON_E9  0x00e9
#define PC_PORT_FPU          0x00f0 /* clears the FERR# latch */
#define PC_PORT_DEBUG_EXIT   0x00f4 /* isa-debug-exit, one to four bytes */
#define PC_PORT_COM4         0x02e8
#define PC_PORT_COM2         0x02f8
#define PC_PORT_COM3         0x03e8
#define PC_PORT_COM1         0x03f8
#define PC_PORT_DEBUGCON_402 0x0402
#define PC_PORT_ELCR         0x04d0 /* edge/level control, two bytes */
#define PC_PORT_FW_CFG       0x0510 /* selector, data; DMA at +4 */
#define PC_PORT_ACPI         0x0600 /* the whole block */
#define PC_PORT_ACPI_LENGTH  0x40
#define PC_PORT_SMBUS        0x0700 /* 16 ports; no device answers on the bus */
#define PC_PORT_PCI_ADDRESS  0x0cf8
#define PC_PORT_RESET        0x0cf9
#define PC_PORT_PCI_DATA     0x0cfc

/* ACPI fixed hardware. No SMI command port: SCI_EN always reads as 1. The timer has 24 bits. */
#define PC_ACPI_PM1_EVENT          0x0600 /* status, enable: two bytes each */
#define PC_ACPI_PM1_EVENT_LENGTH   4
#define PC_ACPI_PM1_CONTROL        0x0604
#define PC_ACPI_PM1_CONTROL_LENGTH 2
#define PC_ACPI_PM_TIMER           0x0608
#define PC_ACPI_PM_TIMER_LENGTH    4
#define PC_ACPI_GPE0               0x0620 /* status, enable: two bytes each; no event is wired yet */
#define PC_ACPI_GPE0_LENGTH        4
#define PC_ACPI_S5_TYPE            0    /* SLP_TYP that means soft off */
#define PC_RESET_VALUE             0x06 /* written to PC_PORT_RESET: full reset */
#define PC_RTC_CENTURY             0x32 /* CMOS register */

/* Interrupts: ISA numbers, which are also the I/O APIC's pins, but for the timer. */
#define PC_IRQ_PIT     0
#define PC_IRQ_KBD     1
#define PC_IRQ_CASCADE 2
#define PC_IRQ_COM2    3 /* and COM4 */
#define PC_IRQ_COM1    4 /* and COM3 */
#define PC_IRQ_RTC     8
#define PC_IRQ_SCI     9 /* level, active high */
#define PC_IRQ_MOUSE   12
#define PC_IRQ_FPU     13
#define PC_GSI_PIT     2 /* the PIT's pin of the I/O APIC */

/*
 * PCI INTx: pin p (0 is INTA) of slot s on bus 0 pulls PIRQ (s + p - 1) & 3, which the ISA bridge's registers 60h-63h
 * route to one of IRQ 5, 10 and 11 (level, active high). These are their values after reset.
 */
#define PC_PIRQ_REGISTERS   0x60
#define PC_PIRQ_A_IRQ       10
#define PC_PIRQ_B_IRQ       10
#define PC_PIRQ_C_IRQ       11
#define PC_PIRQ_D_IRQ       11
#define PC_PCI_HOST_SLOT    0 /* 00:00.0 host bridge */
#define PC_PCI_ISA_SLOT     1 /* 00:01.0 ISA bridge */
#define PC_PCI_RNG_SLOT     2 /* virtio: */
#define PC_PCI_BALLOON_SLOT 3
#define PC_PCI_CONSOLE_SLOT 4
#define PC_PCI_DISK_SLOT    8  /* eight of them */
#define PC_PCI_NET_SLOT     16 /* eight of them */

/* Memory. RAM ends at 3 GiB at most (MEMORY_LOW_MAX) and goes on at 4 GiB. */
#define PC_EBDA                0x0009fc00 /* 1 KiB, up to the VGA hole */
#define PC_BIOS_AREA           0x000e0000 /* 128 KiB; with a directly loaded kernel it holds the ACPI tables */
#define PC_BIOS_AREA_LENGTH    0x00020000
#define PC_PCI_IO              0xc000     /* ports for BARs, up to the end */
#define PC_PCI_WINDOW1         0xc0000000 /* for BARs */
#define PC_PCI_WINDOW1_LENGTH  0x20000000
#define PC_MMCONFIG            0xe0000000 /* room for 256 buses; bus 0 answers */
#define PC_MMCONFIG_LENGTH     0x10000000
#define PC_PCI_WINDOW2         0xf0000000
#define PC_PCI_WINDOW2_LENGTH  0x0ec00000
#define PC_IOAPIC              0xfec00000
#define PC_IOAPIC_LENGTH       0x00001000
#define PC_LAPIC               0xfee00000
#define PC_LAPIC_LENGTH        0x00100000   /* with the MSI range */
#define PC_FIRMWARE_END        0x100000000  /* flash ends here */
#define PC_PCI_WINDOW64        0x4000000000 /* 256 GiB: above any RAM, below 39 physical bits' end */
#define PC_PCI_WINDOW64_LENGTH 0x4000000000

#define PC_IOAPIC_ID   0 /* its register after reset; I/O APICs have an ID space of their own */
#define PC_IOAPIC_PINS 24

#endif
