; Which second exceptions make a double fault, and which are just delivered (SDM 3A table 6-5).
%define GUEST "double_fault"
%define GUEST_BITS 64
%include "guest.inc"

UNMAPPED equ 0x8000000000

guest_main:
	GATE	EXC_DF, STUB(EXC_DF), 0x8e, SEL_CODE, 1
	GATE	EXC_PF, STUB(EXC_PF), 0x8e, SEL_CODE, 2

	; Contributory, then contributory: #GP through a gate that is not present.
	GATE	EXC_GP, STUB(EXC_GP), 0x0e
	mov	eax, 0x1000
	FAULT	EXC_DF, 0, mov ds, eax
	CHECK	[caught_frame], IST_TOP(1) - 40
	; #DE is contributory.
	GATE	EXC_DE, STUB(EXC_DE), 0x0e
	GATE	EXC_NP, STUB(EXC_NP), 0x0e
	xor	ecx, ecx
	FAULT	EXC_DF, 0, div ecx
	GATE	EXC_NP, STUB(EXC_NP)
	; #DE's gate is not present: #NP is contributory too: a double fault, not #NP.
	FAULT	EXC_DF, 0, div ecx
	GATE	EXC_DE, STUB(EXC_DE)
	; Benign, then contributory: the second one is delivered.
	GATE	EXC_GP, STUB(EXC_GP)
	GATE	EXC_UD, STUB(EXC_UD), 0x0e
	CATCH	.np
.ud:	ud2
.np:
	CATCH_END
	CHECK	[caught_vector], EXC_NP
	CHECK_BITS [caught_error], ~1, EXC_UD * 8 + 2
	CHECK	[caught_ip], .ud
	GATE	EXC_UD, STUB(EXC_UD)
	; Page fault, then page fault: the handler's stack is not there.
	GATE	EXC_PF, STUB(EXC_PF), 0x8e, SEL_CODE, 3
	mov	rax, UNMAPPED + 0x3000
	mov	[tss + 0x1c + 3 * 8], rax
	mov	rax, UNMAPPED
	FAULT	EXC_DF, 0, mov al, [rax]
	; Page fault, then contributory.
	GATE	EXC_PF, STUB(EXC_PF), 0x0e
	mov	rax, UNMAPPED
	FAULT	EXC_DF, 0, mov al, [rax]
	GATE	EXC_PF, STUB(EXC_PF), 0x8e, SEL_CODE, 2
	; Contributory, then page fault: the page fault is delivered.
	GATE	EXC_GP, STUB(EXC_GP), 0x8e, SEL_CODE, 3
	mov	eax, 0x1000
	CATCH	.pf
.gp:	mov	ds, eax
.pf:
	CAUGHT	EXC_PF, PF_W, .gp
	mov	rax, UNMAPPED + 0x2000		; which of the frame's words is told first is not promised
	mov	rbx, [caught_cr2]
	and	rbx, ~0xfff
	CHECK	rbx, rax
	GATE	EXC_GP, STUB(EXC_GP)
	; Benign, then page fault.
	GATE	EXC_UD, STUB(EXC_UD), 0x8e, SEL_CODE, 3
	FAULT	EXC_PF, PF_W, ud2
	GATE	EXC_UD, STUB(EXC_UD)
	; Software interrupts are benign, whatever the vector.
	GATE	EXC_GP, STUB(EXC_GP)
	GATE	0x80, STUB(0x80), 0x0e
	FAULT	EXC_NP, 0x80 * 8 + 2, int 0x80
	; After all that an ordinary fault is ordinary.
	FAULT	EXC_UD, 0, ud2
	mov	eax, 0x1000
	FAULT	EXC_GP, 0x1000, mov ds, eax
	ret
