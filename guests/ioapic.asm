; The I/O APIC: registers, edge and level interrupts with remote IRR and EOI, masking, delivery modes, the timer's pin
; (82093AA). Pins are pulled by the 8254 (pin 2), the RTC (pin 8) and the serial port (pin 4, with its loopback).
%define GUEST "ioapic"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

MASKED	equ 1 << 16
LEVEL	equ 1 << 15
REMOTE	equ 1 << 14
LOW	equ 1 << 13
PENDING	equ 1 << 12

guest_main:
	call	apic_enable
	call	registers
	call	edge
	call	level
	call	nmi_mode
	ret

registers:
	IOAPIC_READ eax, 1
	mov	ebx, eax
	shr	ebx, 16
	and	ebx, 0xff
	CHECK	rbx, 23				; 24 pins
	and	eax, 0xff
	cmp	eax, 0x11
	HOLDS	ae, "version"
	; Redirection entries: read-only bits stay.
	IOAPIC_WRITE 0x10 + 23 * 2, 0x1ffff
	IOAPIC_READ eax, 0x10 + 23 * 2
	CHECK_BITS eax, 0x1ffff, 0x1ffff & ~(PENDING | REMOTE)
	IOAPIC_WRITE 0x10 + 23 * 2, MASKED
	IOAPIC_WRITE 0x11 + 23 * 2, 0x5a000000
	IOAPIC_READ eax, 0x11 + 23 * 2
	CHECK_BITS eax, 0xff000000, 0x5a000000
	; The index register is eight bits wide, and reads back.
	mov	edi, IOAPIC
	mov	dword [rdi], 0x21
	mov	eax, [rdi]
	CHECK_BITS eax, 0xff, 0x21
	ret

; 8254 in mode 0: one edge on pin 2.
pit_once:
	push	rax
	mov	al, 0x30
	out	0x43, al
	mov	al, 0xd0
	out	0x40, al
	mov	al, 0x07
	out	0x40, al
	pop	rax
	ret

edge:
	HOOK	0x61, irq_apic
	call	irq_forget
	IOAPIC_PIN 2, 0x61
	sti
	call	pit_once
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x61)], 1
	mov	ecx, 10
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x61)], 1
	IOAPIC_READ eax, 0x14
	CHECK_BITS eax, REMOTE | PENDING, 0
	; An edge while masked is lost.
	call	irq_forget
	IOAPIC_PIN 2, MASKED | 0x61
	call	pit_once
	mov	ecx, 10
	call	delay_ms
	IOAPIC_PIN 2, 0x61
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x61)], 0
	; Periodic edges.
	mov	al, 0x34
	out	0x43, al
	mov	al, 0x9c
	out	0x40, al
	mov	al, 0x2e
	out	0x40, al
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x61)], 5
	; Another vector, at once.
	HOOK	0x71, irq_apic
	IOAPIC_PIN 2, 0x71
	call	irq_forget
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x71)], 2
	; Logical destination, lowest priority.
	IOAPIC_WRITE 0x14, MASKED
	IOAPIC_WRITE 0x15, 0x01000000
	IOAPIC_WRITE 0x14, 0x961
	call	irq_forget
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x61)], 2
	; To nobody.
	IOAPIC_WRITE 0x14, MASKED
	IOAPIC_WRITE 0x15, 0x77000000
	IOAPIC_WRITE 0x14, 0x61
	mov	ecx, 5
	call	delay_ms
	call	irq_forget
	mov	ecx, 30
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x61)], 0
	IOAPIC_PIN 2, MASKED
	cli
	; The RTC on pin 8.
	HOOK	0x62, .rtc
	call	irq_forget
	IOAPIC_PIN 8, 0x62
	mov	al, 0x0a
	out	0x70, al
	mov	al, 0x26
	out	0x71, al
	mov	al, 0x0b
	out	0x70, al
	in	al, 0x71
	mov	bl, al
	mov	al, 0x0b
	out	0x70, al
	mov	al, bl
	or	al, 0x40
	out	0x71, al
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 5
	cli
	mov	al, 0x0b
	out	0x70, al
	mov	al, bl
	out	0x71, al
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	IOAPIC_PIN 8, MASKED
	ret
.rtc:	call	irq_note
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	LAPIC_WRITE 0xb0, 0
	ret

; The serial port's line is high as long as it wants something.
level:
	OUTB	0x3fc, 0x08			; OUT2
	OUTB	0x3f9, 0
	HOOK	0x63, .keep
	call	irq_forget
	IOAPIC_PIN 4, LEVEL | 0x63
	sti
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x63)], 0
	; The transmitter is empty: that is an interrupt, until it is read off the IIR or switched off.
	HOOK	0x63, .quiet
	OUTB	0x3f9, 2
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x63)], 1
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x63)], 1
	CHECK_BITS [entry_seen], REMOTE, REMOTE	; in the handler, before EOI
	IOAPIC_READ eax, 0x18
	CHECK_BITS eax, REMOTE, 0
	; Still high at EOI: it comes again. Three times, then the handler calms the device.
	call	irq_forget
	HOOK	0x63, .third
	OUTB	0x3f9, 2
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x63)], 3
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x63)], 3
	; Masked while high, then opened: it comes.
	cli
	call	irq_forget
	HOOK	0x63, .quiet
	IOAPIC_PIN 4, MASKED | LEVEL | 0x63
	OUTB	0x3f9, 0
	OUTB	0x3f9, 2
	sti
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x63)], 0
	IOAPIC_PIN 4, LEVEL | 0x63
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x63)], 1
	; The line falls before the interrupt was taken: it is taken all the same (it is in the IRR).
	cli
	call	irq_forget
	OUTB	0x3f9, 0
	OUTB	0x3f9, 2
	mov	ecx, 2
	call	delay_ms
	OUTB	0x3f9, 0
	sti
	mov	ecx, 5
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x63)], 1
	cli
	IOAPIC_PIN 4, MASKED
	OUTB	0x3fc, 3
	ret
.keep:	jmp	irq_apic
.quiet:
	call	irq_note
	IOAPIC_READ eax, 0x18
	mov	[entry_seen], eax
	OUTB	0x3f9, 0
	LAPIC_WRITE 0xb0, 0
	ret
.third:
	call	irq_note
	cmp	dword [IRQ_COUNT(0x63)], 3
	jb	.go_on
	OUTB	0x3f9, 0
.go_on:
	LAPIC_WRITE 0xb0, 0
	ret

; A pin in NMI mode.
nmi_mode:
	call	irq_forget
	HOOK	EXC_NMI, irq_note
	mov	al, 0x30			; no edge before that one
	out	0x43, al
	IOAPIC_PIN 2, 0x400
	call	pit_once
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(2)], 1
	IOAPIC_PIN 2, MASKED
	HOOK	EXC_NMI, 0
	ret

section .data
entry_seen: dd 0
