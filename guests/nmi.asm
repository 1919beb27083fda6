; NMI: delivery by the local APIC, blocking until IRET, one held pending, HLT, IF, MOV SS (SDM 3A 6.7).
%define GUEST "nmi"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

; To itself: delivery mode NMI, physical destination. (The self shorthand is for fixed ones only.)
%macro SEND_NMI 0
	LAPIC_WRITE 0x310, 0
	LAPIC_WRITE 0x300, 0x00004400
%endmacro

guest_main:
	call	apic_enable
	LAPIC_READ eax, 0x20
	and	eax, 0xff000000
	CHECK	rax, 0
	; Taken with IF clear, at vector 2, without a vector of its own in the ISR.
	HOOK	EXC_NMI, irq_note
	SEND_NMI
	nop
	nop
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(2)], 1
	LAPIC_READ eax, 0x100
	CHECK	rax, 0
	LAPIC_READ ebx, 0x200
	CHECK	rbx, 0
	; Blocked in the handler until IRET; one more is held, further ones are lost.
	call	irq_forget
	HOOK	EXC_NMI, .nested
	mov	dword [depth], 0
	mov	dword [deepest], 0
	SEND_NMI
	nop
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(2)], 2
	mov	ecx, 20
	call	delay_ms
	CHECK32	[IRQ_COUNT(2)], 2
	CHECK32	[deepest], 1
	; Any IRET ends the blocking, also one of another exception inside the handler.
	call	irq_forget
	HOOK	EXC_NMI, .with_exception
	HOOK	EXC_BP, .nothing
	mov	dword [depth], 0
	mov	dword [deepest], 0
	SEND_NMI
	nop
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(2)], 2
	CHECK32	[deepest], 2
	HOOK	EXC_BP, 0
	; On its own stack by IST.
	GATE	EXC_NMI, STUB(EXC_NMI), 0x8e, SEL_CODE, 2
	call	irq_forget
	HOOK	EXC_NMI, .stack
	SEND_NMI
	nop
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(2)], 1
	CHECK	[frame], IST_TOP(2) - 40 - 17 * 8
	; Interrupts are taken in between as ever.
	HOOK	EXC_NMI, irq_note
	HOOK	0x90, irq_apic
	call	irq_forget
	sti
	SELF_IPI 0x90
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x90)], 1
	cli
	; NMI goes before an interrupt.
	call	irq_forget
	SELF_IPI 0x90
	SEND_NMI
	nop
	nop
	sti
	nop
	nop
	cli
	CHECK8	[irq_order], 2
	CHECK8	[irq_order + 1], 0x90
	; From CPL 3.
	GATE	EXC_NMI, STUB(EXC_NMI)
	call	irq_forget
	USER	.user
	CAUGHT	EXC_UD, 0
	CHECK32	[IRQ_COUNT(2)], 1
	HOOK	EXC_NMI, 0
	HOOK	0x90, 0
	ret
.user:	; The user reaches the APIC's page: it is open to him here.
	mov	rdi, LAPIC
	mov	dword [rdi + 0x300], 0x00004400
	mov	ecx, 1000
.spin:	loop	.spin
	ud2
.nothing:
	ret
.stack:	mov	[frame], rdi
	jmp	irq_note
.nested:
	call	irq_note
	inc	dword [depth]
	mov	eax, [depth]
	cmp	eax, [deepest]
	jbe	.not_deeper
	mov	[deepest], eax
.not_deeper:
	cmp	dword [IRQ_COUNT(2)], 1
	jne	.last
	SEND_NMI
	SEND_NMI
	SEND_NMI
	mov	ecx, 10000
.wait:	loop	.wait
.last:	dec	dword [depth]
	ret
.with_exception:
	call	irq_note
	inc	dword [depth]
	mov	eax, [depth]
	cmp	eax, [deepest]
	jbe	.not_deeper2
	mov	[deepest], eax
.not_deeper2:
	cmp	dword [IRQ_COUNT(2)], 1
	jne	.last2
	SEND_NMI
	int3					; its IRET opens the way for the second one, here
	mov	ecx, 10000
.wait2:	loop	.wait2
.last2:	dec	dword [depth]
	ret

section .data
	align	8
depth:	dd 0
deepest: dd 0
frame:	dq 0
