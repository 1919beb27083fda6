; The local APIC's priorities: IRR and ISR, nesting, TPR and CR8, PPR, EOI, spurious interrupts, the shadow of STI
; (SDM 3A 10.8).
%define GUEST "interrupt_priority"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

%macro ALLOW 0				; a window for interrupts
	sti
	nop
	nop
	nop
	cli
%endmacro

guest_main:
	call	apic_enable
	HOOK	0xff, irq_spurious
	HOOK	0x31, irq_apic
	HOOK	0x41, irq_apic
	HOOK	0x42, irq_apic
	HOOK	0x51, irq_apic
	HOOK	0xf1, irq_apic
	; Pending in the IRR while IF is clear; the highest first.
	SELF_IPI 0x41
	SELF_IPI 0x51
	SELF_IPI 0x31
	SELF_IPI 0x42
	LAPIC_READ eax, 0x210
	CHECK_BITS eax, 1 << 17, 1 << 17	; 31h
	LAPIC_READ eax, 0x220
	CHECK_BITS eax, (1 << 1) | (1 << 2) | (1 << 17), (1 << 1) | (1 << 2) | (1 << 17)
	call	irq_forget
	ALLOW
	CHECK32	[irq_total], 4
	CHECK32	[irq_order], 0x31414251
	LAPIC_READ eax, 0x220
	CHECK	rax, 0
	LAPIC_READ eax, 0x120
	CHECK	rax, 0
	; A vector is pending once, however often it is sent.
	call	irq_forget
	SELF_IPI 0x41
	SELF_IPI 0x41
	SELF_IPI 0x41
	ALLOW
	CHECK32	[irq_total], 1
	; TPR: classes up to its own are held back.
	call	irq_forget
	LAPIC_WRITE 0x80, 0x40
	LAPIC_READ eax, 0xa0
	CHECK	rax, 0x40			; PPR
	SELF_IPI 0x41
	SELF_IPI 0x51
	ALLOW
	CHECK32	[irq_total], 1
	CHECK8	[irq_order], 0x51
	mov	eax, 3
	mov	cr8, rax
	ALLOW
	CHECK32	[irq_total], 2
	CHECK8	[irq_order + 1], 0x41
	; Lowered with IF set: at the next instruction.
	mov	eax, 0xf
	mov	cr8, rax
	call	irq_forget
	SELF_IPI 0xf1
	sti
	nop
	nop
	CHECK32	[irq_total], 0
	xor	eax, eax
	mov	cr8, rax
.lowered:
	nop
	cli
	CHECK32	[irq_total], 1
	CHECK	[irq_ip], .lowered
	; A handler is interrupted by a higher class only, and its PPR is its own class.
	call	irq_forget
	HOOK	0x41, .nesting
	SELF_IPI 0x41
	ALLOW
	CHECK32	[irq_total], 4
	CHECK8	[irq_order], 0x41
	CHECK8	[irq_order + 1], 0x51
	CHECK8	[irq_order + 2], 0x42
	CHECK8	[irq_order + 3], 0x31
	CHECK32	[seen_ppr], 0x40
	CHECK32	[seen_isr], 1 << 1
	HOOK	0x41, irq_apic
	; EOI without anything in service is harmless.
	LAPIC_WRITE 0xb0, 0
	; The same vector while it is in service: once more after EOI.
	call	irq_forget
	HOOK	0x41, .again
	SELF_IPI 0x41
	ALLOW
	CHECK32	[irq_total], 2
	CHECK32	[deepest], 1
	HOOK	0x41, irq_apic
	; Vectors below 16 cannot be sent: an error, nothing else.
	call	irq_forget
	LAPIC_WRITE 0x280, 0
	SELF_IPI 0x05
	ALLOW
	CHECK32	[irq_total], 0
	LAPIC_WRITE 0x280, 0
	LAPIC_READ eax, 0x280
%ifndef ON_BOCHS
	CHECK_BITS eax, 0x20, 0x20		; send illegal vector
%endif
	LAPIC_WRITE 0x280, 0
	LAPIC_READ eax, 0x280
	CHECK	rax, 0
	; Software-disabled: LVTs are masked and stay so.
	LAPIC_WRITE 0x320, 0x41
	LAPIC_WRITE 0xf0, 0xff
	LAPIC_READ eax, 0x320
	CHECK_BITS eax, 0x10000, 0x10000
	LAPIC_WRITE 0xf0, 0x1ff
	LAPIC_READ eax, 0x320
	CHECK_BITS eax, 0x10000, 0x10000
	; HLT wakes up, and goes on behind it.
	call	irq_forget
	SELF_IPI 0x41
	sti
	hlt
.behind_hlt:
	cli
	CHECK32	[irq_total], 1
	CHECK	[irq_ip], .behind_hlt
	; Version and identity.
	LAPIC_READ eax, 0x30
	CHECK_BITS eax, 0xf0, 0x10		; integrated
	ret
.nesting:
	call	irq_note
	LAPIC_READ eax, 0xa0
	mov	[seen_ppr], eax
	LAPIC_READ eax, 0x120
	mov	[seen_isr], eax
	SELF_IPI 0x31
	SELF_IPI 0x42
	SELF_IPI 0x51
	sti
	nop
	nop
	cli
	cmp	dword [irq_total], 2
	je	.fine
	mov	byte [irq_order + 1], 0xee
.fine:
	LAPIC_WRITE 0xb0, 0
	ret
.again:
	call	irq_note
	inc	dword [depth]
	mov	eax, [depth]
	cmp	eax, [deepest]
	jbe	.not_deeper
	mov	[deepest], eax
.not_deeper:
	cmp	dword [irq_total], 1
	jne	.last
	SELF_IPI 0x41
	sti
	nop
	nop
	cli
.last:	dec	dword [depth]
	LAPIC_WRITE 0xb0, 0
	ret

section .data
	align	4
seen_ppr: dd 0
seen_isr: dd 0
depth:	dd 0
deepest: dd 0
