; 8259 pair and 8254: interrupts, masks, priorities, EOI forms, spurious ones, polling; PIT modes, latch and
; read-back, rates; HLT and the timer.
%define GUEST "pic_pit"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

; The 8259's INTR reaches the processor through the APIC's LINT0 as ExtINT.
%macro MASKS 2				; master, slave
	mov	al, %1
	out	0x21, al
	mov	al, %2
	out	0xa1, al
%endmacro

; PIT_SET channel, mode, count: low and high byte.
%macro PIT_SET 3
	mov	al, ((%1) << 6) | 0x30 | ((%2) << 1)
	out	0x43, al
	mov	al, (%3) & 0xff
	out	0x40 + %1, al
	mov	al, (%3) >> 8
	out	0x40 + %1, al
%endmacro
; PIT_LATCH channel: its count to EAX.
%macro PIT_LATCH 1
	mov	al, (%1) << 6
	out	0x43, al
	in	al, 0x40 + %1
	movzx	ebx, al
	in	al, 0x40 + %1
	movzx	eax, al
	shl	eax, 8
	or	eax, ebx
%endmacro

guest_main:
	call	apic_enable
	LAPIC_WRITE 0x350, 0x700		; LINT0: ExtINT
	HOOK	0x20, irq_pic
	HOOK	0x27, irq_note
	HOOK	0x2f, spurious_slave
	HOOK	0x28, irq_pic
	call	registers
	call	timer_interrupts
	call	priorities
	call	modes
	call	rates
	MASKS	0xff, 0xff
	ret

registers:
	mov	al, 0x5a
	out	0x21, al
	in	al, 0x21
	CHECK_BITS eax, 0xff, 0x5a
	mov	al, 0xa5
	out	0xa1, al
	in	al, 0xa1
	CHECK_BITS eax, 0xff, 0xa5
	MASKS	0xff, 0xff
	; ISR and IRR are empty, or the IRR has what devices want.
	mov	al, 0x0b
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 0xff, 0
	; ELCR: IRQs 0, 1, 2, 8, 13 are edge-triggered for good.
	mov	dx, 0x4d0
	in	al, dx
	CHECK_BITS eax, 0x07, 0
	inc	edx
	in	al, dx
	CHECK_BITS eax, 0x21, 0
	ret

timer_interrupts:
	; One interrupt from mode 0.
	call	irq_forget
	PIT_SET	0, 0, 2000
	MASKS	0xfe, 0xff
	sti
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x20)], 1
	mov	ecx, 10
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x20)], 1
	; Masked: it stays in the IRR, and comes when the mask goes.
	MASKS	0xff, 0xff
	call	irq_forget
	PIT_SET	0, 0, 2000
	mov	ecx, 10
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x20)], 0
	mov	al, 0x0a
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 1, 1
	MASKS	0xfe, 0xff
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x20)], 1
	; Periodic, with HLT.
	call	irq_forget
	PIT_SET	0, 2, 11932			; 100 Hz
.halt:
	hlt
	cmp	dword [IRQ_COUNT(0x20)], 10
	jb	.halt
	call	check_passed
	; No EOI: no second one, and the ISR says so.
	cli
	MASKS	0xff, 0xff
	HOOK	0x20, irq_note
	call	irq_forget
	MASKS	0xfe, 0xff
	sti
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x20)], 1
	mov	ecx, 40
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x20)], 1
	mov	al, 0x0b
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 0xff, 1
	; A specific EOI ends it.
	cli
	HOOK	0x20, irq_pic
	mov	al, 0x60
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 0xff, 0
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x20)], 3
	cli
	MASKS	0xff, 0xff
	; Automatic EOI.
	mov	al, 0x11
	out	0x20, al
	mov	al, 0x20
	out	0x21, al
	mov	al, 4
	out	0x21, al
	mov	al, 3
	out	0x21, al
	HOOK	0x20, irq_note
	call	irq_forget
	MASKS	0xfe, 0xff
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x20)], 3
	cli
	MASKS	0xff, 0xff
	; Another vector base.
	mov	al, 0x11
	out	0x20, al
	mov	al, 0x50
	out	0x21, al
	mov	al, 4
	out	0x21, al
	mov	al, 1
	out	0x21, al
	HOOK	0x50, irq_pic
	call	irq_forget
	MASKS	0xfe, 0xff
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x50)], 2
	cli
	mov	al, 0x11
	out	0x20, al
	mov	al, 0x20
	out	0x21, al
	mov	al, 4
	out	0x21, al
	mov	al, 1
	out	0x21, al
	MASKS	0xff, 0xff
	HOOK	0x20, irq_pic
	HOOK	0x50, 0
	; LINT0 masked: the 8259 does not get through.
	LAPIC_WRITE 0x350, 0x10700
	call	irq_forget
	MASKS	0xfe, 0xff
	sti
	mov	ecx, 30
	call	delay_ms
	cli
	CHECK32	[irq_total], 0
	LAPIC_WRITE 0x350, 0x700
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x20)], 1
	cli
	MASKS	0xff, 0xff
	ret

spurious_slave:
	call	irq_note
	mov	al, 0x20
	out	0x20, al			; the master saw a real one on IR2
	ret

; The timer against the RTC's periodic interrupt on the slave: nesting by the 8259's own priorities.
priorities:
	call	irq_forget
	; RTC: periodic interrupts.
	mov	al, 0x0a
	out	0x70, al
	mov	al, 0x26			; 1024 Hz
	out	0x71, al
	mov	al, 0x0b
	out	0x70, al
	in	al, 0x71
	or	al, 0x40
	mov	ah, al
	mov	al, 0x0b
	out	0x70, al
	mov	al, ah
	out	0x71, al
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	HOOK	0x28, .rtc
	MASKS	0xfb, 0xfe
	sti
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x28)], 5
	cli
	; In its handler (ISR bit 2 of the master, 0 of the slave) the timer (IR0) is let in.
	HOOK	0x28, .rtc_nesting
	PIT_SET	0, 2, 1193
	call	irq_forget
	mov	dword [nested], 0
	MASKS	0xfa, 0xfe
	sti
	WAIT_UNTIL ae, cmp dword [nested], 1
	cli
	MASKS	0xff, 0xff
	; Off again.
	mov	al, 0x0b
	out	0x70, al
	in	al, 0x71
	and	al, 0xbf
	mov	ah, al
	mov	al, 0x0b
	out	0x70, al
	mov	al, ah
	out	0x71, al
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	; The poll command: the highest request, acknowledged without INTA.
	mov	al, 0x20
	out	0x20, al
	PIT_SET	0, 0, 100
	mov	ecx, 2
	call	delay_ms
	MASKS	0xfe, 0xff
	mov	al, 0x0c			; poll
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 0x87, 0x80
	mov	al, 0x0b
	out	0x20, al
	in	al, 0x20
	CHECK_BITS eax, 0xff, 1
	mov	al, 0x20
	out	0x20, al
	MASKS	0xff, 0xff
	ret
.rtc:	call	irq_note
.rtc_ack:
	mov	al, 0x0c
	out	0x70, al
	in	al, 0x71
	mov	al, 0x20
	out	0xa0, al
	out	0x20, al
	ret
.rtc_nesting:
	call	irq_note
	mov	al, 0x0b
	out	0xa0, al
	in	al, 0xa0
	mov	[slave_isr], al
	mov	eax, [IRQ_COUNT(0x20)]
	push	rax
	sti
	mov	ecx, 30
	call	delay_ms
	cli
	pop	rax
	cmp	[IRQ_COUNT(0x20)], eax
	je	.rtc_ack
	cmp	byte [slave_isr], 1
	jne	.rtc_ack
	inc	dword [nested]
	jmp	.rtc_ack

modes:
	; Channel 2 by its gate. Mode 0: OUT goes high at the end, and stays.
	in	al, 0x61
	and	al, 0xfc
	out	0x61, al
	PIT_SET	2, 0, 5000
	in	al, 0x61
	CHECK_BITS eax, 0x20, 0
	PIT_LATCH 2
	CHECK	rax, 5000			; the gate holds it
	in	al, 0x61
	or	al, 1
	out	0x61, al
	call	.until_high
	; Read-back: status and count latched together.
	; Mode 2: however long the host lets us wait, the count stays below the period.
	PIT_SET	2, 2, 0x1234
	mov	al, 0xc8			; status and count of channel 2
	out	0x43, al
	in	al, 0x42
	CHECK_BITS eax, 0x3f, 0x34		; mode 2, both bytes, binary
	in	al, 0x42
	movzx	ebx, al
	in	al, 0x42
	movzx	eax, al
	shl	eax, 8
	or	eax, ebx
	cmp	eax, 0x1234
	HOLDS	be, "latched count"
	; One byte at a time: latched values stay until read.
	mov	al, 0x80
	out	0x43, al
	in	al, 0x42
	movzx	ebx, al
	mov	ecx, 2
	call	.spin
	in	al, 0x42
	shl	eax, 8
	mov	al, bl
	movzx	eax, ax
	cmp	eax, 0x1234
	HOLDS	be, "latched count stays"
	; Low byte only, high byte only.
	mov	al, 0x94
	out	0x43, al
	mov	al, 200
	out	0x42, al
	in	al, 0x42
	movzx	eax, al
	cmp	eax, 200
	HOLDS	be, "low byte access"
	; BCD.
	in	al, 0x61
	and	al, 0xfe
	out	0x61, al
	mov	al, 0xb1
	out	0x43, al
	mov	al, 0x00
	out	0x42, al
	mov	al, 0x10
	out	0x42, al
	PIT_LATCH 2
	CHECK	rax, 0x1000
	in	al, 0x61
	or	al, 1
	out	0x61, al
	mov	ecx, 2
	call	.spin
	PIT_LATCH 2
	mov	ecx, eax
	and	ecx, 0x0f
	cmp	ecx, 9
	HOLDS	be, "BCD digits"
	; Mode 3 halves: OUT is high half of the time.
	PIT_SET	2, 3, 0xffff
	call	.until_high
	call	.until_low
	call	.until_high
	; Mode 2: a count that is loaded again by itself.
	PIT_SET	2, 2, 1000
	mov	ebp, 200
.mode2:	PIT_LATCH 2
	cmp	eax, 1000
	HOLDS	be, "mode 2 count"
	cmp	eax, 1
	HOLDS	ae, "mode 2 count"
	dec	ebp
	jnz	.mode2
	ret
.out2:	push	rax
	in	al, 0x61
	test	al, 0x20
	pop	rax
	ret
; (The delays of the library use channel 2 themselves.)
.until_high:
	mov	ecx, 100000000
.not_yet:
	call	.out2
	jnz	.seen
	loop	.not_yet
	FAILED	"OUT of channel 2 stays low"
.seen:	call	check_passed
	ret
.until_low:
	mov	ecx, 100000000
.still:	call	.out2
	jz	.seen
	loop	.still
	FAILED	"OUT of channel 2 stays high"
	ret
.spin:	push	rcx
	mov	ecx, 1000
.spinning:
	loop	.spinning
	pop	rcx
	ret

; 100 Hz against a delay by channel 2. Ticks that come while the processor is away are one, so there are several tries.
rates:
	PIT_SET	0, 2, 11932
	MASKS	0xfe, 0xff
	mov	ebp, 300
	sti
.try:
	call	irq_forget
	mov	ecx, 100
	call	delay_ms
	cmp	dword [IRQ_COUNT(0x20)], 8
	jae	.enough
	dec	ebp
	jnz	.try
.enough:
	cli
	MASKS	0xff, 0xff
	test	ebp, ebp
	HOLDS	nz, "8 ticks in 100 ms"
	ret

section .data
nested:	dd 0
slave_isr: db 0
