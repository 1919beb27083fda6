/*
 * The machine's ACPI name space: what cannot be found by probing. Addresses come from machine/pc_addresses.h; the fixed
 * hardware (power button, PM timer, sleep and reset registers) is in the FADT, which acpi.c builds.
 */
#include "machine/pc_addresses.h"

DefinitionBlock ("dsdt.aml", "DSDT", 2, "RING3", "RING3PC", 1)
{
	/* Soft off; no other sleep state. */
	Name (\_S5, Package () { PC_ACPI_S5_TYPE, PC_ACPI_S5_TYPE, 0, 0 })

	/* 0: 8259s, 1: I/O APIC. Interrupt numbers are the same for both. */
	Name (PICM, 0)
	Method (_PIC, 1, NotSerialized) { PICM = Arg0 }

	Scope (\_SB)
	{
		Device (PCI0)
		{
			Name (_HID, EisaId ("PNP0A03"))
			Name (_UID, 0)
			Name (_BBN, 0)
			Name (_CRS, ResourceTemplate ()
			{
				WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x0000, 0x00ff, 0, 0x0100)
				IO (Decode16, PC_PORT_PCI_ADDRESS, PC_PORT_PCI_ADDRESS, 1, 8)
				WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
					0, 0x0000, 0x0cf7, 0, 0x0cf8)
				WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
					0, 0x0d00, 0xffff, 0, 0xf300)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
					0, 0x000a0000, 0x000bffff, 0, 0x00020000)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, PC_PCI_WINDOW1, 0xdfffffff, 0, PC_PCI_WINDOW1_LENGTH)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
					0, PC_PCI_WINDOW2, 0xfebfffff, 0, PC_PCI_WINDOW2_LENGTH)
				QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
					0, PC_PCI_WINDOW64, 0x7fffffffff, 0, PC_PCI_WINDOW64_LENGTH)
			})

			/* INTx of slot s, pin p: PIRQ (s + p - 1) & 3. Every fourth slot is alike. */
			Name (_PRT, Package ()
			{
				Package () { 0x0000ffff, 0, LNKD, 0 }, Package () { 0x0000ffff, 1, LNKA, 0 },
				Package () { 0x0000ffff, 2, LNKB, 0 }, Package () { 0x0000ffff, 3, LNKC, 0 },
				Package () { 0x0001ffff, 0, LNKA, 0 }, Package () { 0x0001ffff, 1, LNKB, 0 },
				Package () { 0x0001ffff, 2, LNKC, 0 }, Package () { 0x0001ffff, 3, LNKD, 0 },
				Package () { 0x0002ffff, 0, LNKB, 0 }, Package () { 0x0002ffff, 1, LNKC, 0 },
				Package () { 0x0002ffff, 2, LNKD, 0 }, Package () { 0x0002ffff, 3, LNKA, 0 },
				Package () { 0x0003ffff, 0, LNKC, 0 }, Package () { 0x0003ffff, 1, LNKD, 0 },
				Package () { 0x0003ffff, 2, LNKA, 0 }, Package () { 0x0003ffff, 3, LNKB, 0 },
				Package () { 0x0004ffff, 0, LNKD, 0 }, Package () { 0x0004ffff, 1, LNKA, 0 },
				Package () { 0x0004ffff, 2, LNKB, 0 }, Package () { 0x0004ffff, 3, LNKC, 0 },
				Package () { 0x0005ffff, 0, LNKA, 0 }, Package () { 0x0005ffff, 1, LNKB, 0 },
				Package () { 0x0005ffff, 2, LNKC, 0 }, Package () { 0x0005ffff, 3, LNKD, 0 },
				Package () { 0x0006ffff, 0, LNKB, 0 }, Package () { 0x0006ffff, 1, LNKC, 0 },
				Package () { 0x0006ffff, 2, LNKD, 0 }, Package () { 0x0006ffff, 3, LNKA, 0 },
				Package () { 0x0007ffff, 0, LNKC, 0 }, Package () { 0x0007ffff, 1, LNKD, 0 },
				Package () { 0x0007ffff, 2, LNKA, 0 }, Package () { 0x0007ffff, 3, LNKB, 0 },
				Package () { 0x0008ffff, 0, LNKD, 0 }, Package () { 0x0008ffff, 1, LNKA, 0 },
				Package () { 0x0008ffff, 2, LNKB, 0 }, Package () { 0x0008ffff, 3, LNKC, 0 },
				Package () { 0x0009ffff, 0, LNKA, 0 }, Package () { 0x0009ffff, 1, LNKB, 0 },
				Package () { 0x0009ffff, 2, LNKC, 0 }, Package () { 0x0009ffff, 3, LNKD, 0 },
				Package () { 0x000affff, 0, LNKB, 0 }, Package () { 0x000affff, 1, LNKC, 0 },
				Package () { 0x000affff, 2, LNKD, 0 }, Package () { 0x000affff, 3, LNKA, 0 },
				Package () { 0x000bffff, 0, LNKC, 0 }, Package () { 0x000bffff, 1, LNKD, 0 },
				Package () { 0x000bffff, 2, LNKA, 0 }, Package () { 0x000bffff, 3, LNKB, 0 },
				Package () { 0x000cffff, 0, LNKD, 0 }, Package () { 0x000cffff, 1, LNKA, 0 },
				Package () { 0x000cffff, 2, LNKB, 0 }, Package () { 0x000cffff, 3, LNKC, 0 },
				Package () { 0x000dffff, 0, LNKA, 0 }, Package () { 0x000dffff, 1, LNKB, 0 },
				Package () { 0x000dffff, 2, LNKC, 0 }, Package () { 0x000dffff, 3, LNKD, 0 },
				Package () { 0x000effff, 0, LNKB, 0 }, Package () { 0x000effff, 1, LNKC, 0 },
				Package () { 0x000effff, 2, LNKD, 0 }, Package () { 0x000effff, 3, LNKA, 0 },
				Package () { 0x000fffff, 0, LNKC, 0 }, Package () { 0x000fffff, 1, LNKD, 0 },
				Package () { 0x000fffff, 2, LNKA, 0 }, Package () { 0x000fffff, 3, LNKB, 0 },
				Package () { 0x0010ffff, 0, LNKD, 0 }, Package () { 0x0010ffff, 1, LNKA, 0 },
				Package () { 0x0010ffff, 2, LNKB, 0 }, Package () { 0x0010ffff, 3, LNKC, 0 },
				Package () { 0x0011ffff, 0, LNKA, 0 }, Package () { 0x0011ffff, 1, LNKB, 0 },
				Package () { 0x0011ffff, 2, LNKC, 0 }, Package () { 0x0011ffff, 3, LNKD, 0 },
				Package () { 0x0012ffff, 0, LNKB, 0 }, Package () { 0x0012ffff, 1, LNKC, 0 },
				Package () { 0x0012ffff, 2, LNKD, 0 }, Package () { 0x0012ffff, 3, LNKA, 0 },
				Package () { 0x0013ffff, 0, LNKC, 0 }, Package () { 0x0013ffff, 1, LNKD, 0 },
				Package () { 0x0013ffff, 2, LNKA, 0 }, Package () { 0x0013ffff, 3, LNKB, 0 },
				Package () { 0x0014ffff, 0, LNKD, 0 }, Package () { 0x0014ffff, 1, LNKA, 0 },
				Package () { 0x0014ffff, 2, LNKB, 0 }, Package () { 0x0014ffff, 3, LNKC, 0 },
				Package () { 0x0015ffff, 0, LNKA, 0 }, Package () { 0x0015ffff, 1, LNKB, 0 },
				Package () { 0x0015ffff, 2, LNKC, 0 }, Package () { 0x0015ffff, 3, LNKD, 0 },
				Package () { 0x0016ffff, 0, LNKB, 0 }, Package () { 0x0016ffff, 1, LNKC, 0 },
				Package () { 0x0016ffff, 2, LNKD, 0 }, Package () { 0x0016ffff, 3, LNKA, 0 },
				Package () { 0x0017ffff, 0, LNKC, 0 }, Package () { 0x0017ffff, 1, LNKD, 0 },
				Package () { 0x0017ffff, 2, LNKA, 0 }, Package () { 0x0017ffff, 3, LNKB, 0 },
				Package () { 0x0018ffff, 0, LNKD, 0 }, Package () { 0x0018ffff, 1, LNKA, 0 },
				Package () { 0x0018ffff, 2, LNKB, 0 }, Package () { 0x0018ffff, 3, LNKC, 0 },
				Package () { 0x0019ffff, 0, LNKA, 0 }, Package () { 0x0019ffff, 1, LNKB, 0 },
				Package () { 0x0019ffff, 2, LNKC, 0 }, Package () { 0x0019ffff, 3, LNKD, 0 },
				Package () { 0x001affff, 0, LNKB, 0 }, Package () { 0x001affff, 1, LNKC, 0 },
				Package () { 0x001affff, 2, LNKD, 0 }, Package () { 0x001affff, 3, LNKA, 0 },
				Package () { 0x001bffff, 0, LNKC, 0 }, Package () { 0x001bffff, 1, LNKD, 0 },
				Package () { 0x001bffff, 2, LNKA, 0 }, Package () { 0x001bffff, 3, LNKB, 0 },
				Package () { 0x001cffff, 0, LNKD, 0 }, Package () { 0x001cffff, 1, LNKA, 0 },
				Package () { 0x001cffff, 2, LNKB, 0 }, Package () { 0x001cffff, 3, LNKC, 0 },
				Package () { 0x001dffff, 0, LNKA, 0 }, Package () { 0x001dffff, 1, LNKB, 0 },
				Package () { 0x001dffff, 2, LNKC, 0 }, Package () { 0x001dffff, 3, LNKD, 0 },
				Package () { 0x001effff, 0, LNKB, 0 }, Package () { 0x001effff, 1, LNKC, 0 },
				Package () { 0x001effff, 2, LNKD, 0 }, Package () { 0x001effff, 3, LNKA, 0 },
				Package () { 0x001fffff, 0, LNKC, 0 }, Package () { 0x001fffff, 1, LNKD, 0 },
				Package () { 0x001fffff, 2, LNKA, 0 }, Package () { 0x001fffff, 3, LNKB, 0 }
			})

			/* The ISA bridge, and what is soldered to it. */
			Device (ISA)
			{
				Name (_ADR, 0x00010000)
				OperationRegion (PIRQ, PCI_Config, PC_PIRQ_REGISTERS, 4)
				Field (PIRQ, ByteAcc, NoLock, Preserve)
				{
					PRQA, 8, PRQB, 8, PRQC, 8, PRQD, 8
				}

				Device (PIC)
				{
					Name (_HID, EisaId ("PNP0000"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_PIC1, PC_PORT_PIC1, 1, 2)
						IO (Decode16, PC_PORT_PIC2, PC_PORT_PIC2, 1, 2)
						IO (Decode16, PC_PORT_ELCR, PC_PORT_ELCR, 1, 2)
						IRQNoFlags () { PC_IRQ_CASCADE }
					})
				}

				Device (DMAC)
				{
					Name (_HID, EisaId ("PNP0200"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_DMA1, PC_PORT_DMA1, 1, 16)
						IO (Decode16, PC_PORT_DMA_PAGE, PC_PORT_DMA_PAGE, 1, 15)
						IO (Decode16, PC_PORT_DMA2, PC_PORT_DMA2, 1, 32)
						DMA (Compatibility, NotBusMaster, Transfer8_16) { 4 }
					})
				}

				Device (PIT)
				{
					Name (_HID, EisaId ("PNP0100"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_PIT, PC_PORT_PIT, 1, 4)
						IRQNoFlags () { PC_IRQ_PIT }
					})
				}

				Device (SPKR)
				{
					Name (_HID, EisaId ("PNP0800"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_SPEAKER, PC_PORT_SPEAKER, 1, 1)
					})
				}

				Device (RTC)
				{
					Name (_HID, EisaId ("PNP0B00"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_RTC, PC_PORT_RTC, 1, 8)
						IRQNoFlags () { PC_IRQ_RTC }
					})
				}

				Device (FPU)
				{
					Name (_HID, EisaId ("PNP0C04"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_FPU, PC_PORT_FPU, 1, 1)
						IRQNoFlags () { PC_IRQ_FPU }
					})
				}

				Device (KBD)
				{
					Name (_HID, EisaId ("PNP0303"))
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_KBC_DATA, PC_PORT_KBC_DATA, 1, 1)
						IO (Decode16, PC_PORT_KBC_COMMAND, PC_PORT_KBC_COMMAND, 1, 1)
						IRQNoFlags () { PC_IRQ_KBD }
					})
				}

				Device (MOU)
				{
					Name (_HID, EisaId ("PNP0F13"))
					Name (_CRS, ResourceTemplate () { IRQNoFlags () { PC_IRQ_MOUSE } })
				}

				Device (COM1)
				{
					Name (_HID, EisaId ("PNP0501"))
					Name (_UID, 1)
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_COM1, PC_PORT_COM1, 1, 8)
						IRQNoFlags () { PC_IRQ_COM1 }
					})
				}

				Device (COM2)
				{
					Name (_HID, EisaId ("PNP0501"))
					Name (_UID, 2)
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_COM2, PC_PORT_COM2, 1, 8)
						IRQNoFlags () { PC_IRQ_COM2 }
					})
				}

				Device (COM3)
				{
					Name (_HID, EisaId ("PNP0501"))
					Name (_UID, 3)
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_COM3, PC_PORT_COM3, 1, 8)
						IRQNoFlags () { PC_IRQ_COM1 }
					})
				}

				Device (COM4)
				{
					Name (_HID, EisaId ("PNP0501"))
					Name (_UID, 4)
					Name (_CRS, ResourceTemplate ()
					{
						IO (Decode16, PC_PORT_COM4, PC_PORT_COM4, 1, 8)
						IRQNoFlags () { PC_IRQ_COM2 }
					})
				}
			}
		}

		/* PIRQA: bit 7 of its register turns it off, bits 3:0 are the IRQ (PIIX3 datasheet 2.2.5). */
		Device (LNKA)
		{
			Name (_HID, EisaId ("PNP0C0F"))
			Name (_UID, 1)
			Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 } })
			Method (_STA, 0, NotSerialized) { Return (LSTA (^^PCI0.ISA.PRQA)) }
			Method (_DIS, 0, NotSerialized) { ^^PCI0.ISA.PRQA |= 0x80 }
			Method (_CRS, 0, NotSerialized) { Return (LCRS (^^PCI0.ISA.PRQA)) }
			Method (_SRS, 1, NotSerialized)
			{
				CreateDWordField (Arg0, 5, PRRI)
				^^PCI0.ISA.PRQA = PRRI
			}
		}

		/* PIRQB: bit 7 of its register turns it off, bits 3:0 are the IRQ (PIIX3 datasheet 2.2.5). */
		Device (LNKB)
		{
			Name (_HID, EisaId ("PNP0C0F"))
			Name (_UID, 2)
			Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 } })
			Method (_STA, 0, NotSerialized) { Return (LSTA (^^PCI0.ISA.PRQB)) }
			Method (_DIS, 0, NotSerialized) { ^^PCI0.ISA.PRQB |= 0x80 }
			Method (_CRS, 0, NotSerialized) { Return (LCRS (^^PCI0.ISA.PRQB)) }
			Method (_SRS, 1, NotSerialized)
			{
				CreateDWordField (Arg0, 5, PRRI)
				^^PCI0.ISA.PRQB = PRRI
			}
		}

		/* PIRQC: bit 7 of its register turns it off, bits 3:0 are the IRQ (PIIX3 datasheet 2.2.5). */
		Device (LNKC)
		{
			Name (_HID, EisaId ("PNP0C0F"))
			Name (_UID, 3)
			Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 } })
			Method (_STA, 0, NotSerialized) { Return (LSTA (^^PCI0.ISA.PRQC)) }
			Method (_DIS, 0, NotSerialized) { ^^PCI0.ISA.PRQC |= 0x80 }
			Method (_CRS, 0, NotSerialized) { Return (LCRS (^^PCI0.ISA.PRQC)) }
			Method (_SRS, 1, NotSerialized)
			{
				CreateDWordField (Arg0, 5, PRRI)
				^^PCI0.ISA.PRQC = PRRI
			}
		}

		/* PIRQD: bit 7 of its register turns it off, bits 3:0 are the IRQ (PIIX3 datasheet 2.2.5). */
		Device (LNKD)
		{
			Name (_HID, EisaId ("PNP0C0F"))
			Name (_UID, 4)
			Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 } })
			Method (_STA, 0, NotSerialized) { Return (LSTA (^^PCI0.ISA.PRQD)) }
			Method (_DIS, 0, NotSerialized) { ^^PCI0.ISA.PRQD |= 0x80 }
			Method (_CRS, 0, NotSerialized) { Return (LCRS (^^PCI0.ISA.PRQD)) }
			Method (_SRS, 1, NotSerialized)
			{
				CreateDWordField (Arg0, 5, PRRI)
				^^PCI0.ISA.PRQD = PRRI
			}
		}

		Method (LSTA, 1, NotSerialized)
		{
			If (Arg0 & 0x80) { Return (0x09) }
			Return (0x0b)
		}

		Method (LCRS, 1, Serialized)
		{
			Name (BUF0, ResourceTemplate ()
			{
				Interrupt (ResourceConsumer, Level, ActiveHigh, Shared, , , LINT) { 0 }
			})
			CreateDWordField (BUF0, LINT._INT, LIRQ)
			If (!(Arg0 & 0x80)) { LIRQ = Arg0 & 0x0f }
			Return (BUF0)
		}

		/* Addresses that no PCI device may be given. */
		Device (MB)
		{
			Name (_HID, EisaId ("PNP0C02"))
			Name (_UID, 1)
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, PC_PORT_POST, PC_PORT_POST, 1, 1)
				IO (Decode16, PC_PORT_SYSTEM_A, PC_PORT_SYSTEM_A, 1, 1)
				IO (Decode16, PC_PORT_DEBUGCON_402, PC_PORT_DEBUGCON_402, 1, 1)
				IO (Decode16, PC_PORT_FW_CFG, PC_PORT_FW_CFG, 1, 12)
				IO (Decode16, PC_PORT_ACPI, PC_PORT_ACPI, 1, PC_PORT_ACPI_LENGTH)
				Memory32Fixed (ReadWrite, PC_MMCONFIG, PC_MMCONFIG_LENGTH)
				Memory32Fixed (ReadWrite, PC_LAPIC, PC_LAPIC_LENGTH)
			})
		}
	}
}
