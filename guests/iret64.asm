; IRET in 64-bit mode: to the same and to outer levels, to compatibility mode, all operand sizes, and what it refuses
; (SDM 2A IRET).
%define GUEST "iret64"
%define GUEST_BITS 64
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)

; FRAME_ rip, cs, flags, rsp, ss: pushes what IRETQ takes.
%macro PUSH_FRAME 5
	push	qword %5
	push	%4
	push	qword %3
	push	qword %2
	push	%1
%endmacro

; Each of these leaves the five words on the stack.
%define IRET_FAULT IRET_FAULT_ __?LINE?__,
%macro IRET_FAULT_ 7		; line, vector, error, cs, flags, rsp, ss
	PUSH_FRAME qword .target, %4, %5, qword %6, %7
	mov	rbx, rsp
	FAULT_	%1, %2, %3, iretq
	CHECK_	%1, rsp, rbx
	add	rsp, 40
%endmacro

guest_main:
	; Same level: RSP is always popped.
	mov	rbx, rsp
	lea	rcx, [rsp - 4096]
	PUSH_FRAME qword .same, SEL_CODE, 2 | CF | DF, rcx, SEL_DATA
	iretq
.same:
	HOLDS	c, "flags of iretq"
	cld
	CHECK	rsp, rcx
	mov	rsp, rbx
	; SS null is a stack at CPL 0.
	PUSH_FRAME qword .null_ss, SEL_CODE, 2, rbx, 0
	iretq
.null_ss:
	mov	eax, ss
	CHECK	rax, 0
	push	rax
	pop	rax
	mov	eax, SEL_DATA
	mov	ss, eax
	CHECK	rsp, rbx
%ifndef ON_BOCHS			; it pops no stack with these; processors do
	; 32- and 16-bit operands.
	sub	rsp, 20
	mov	dword [rsp], .iretd
	mov	dword [rsp + 4], SEL_CODE
	mov	dword [rsp + 8], 2 | CF
	mov	[rsp + 12], ebx
	mov	dword [rsp + 16], SEL_DATA
	iretd
.iretd:
	HOLDS	c, "flags of iretd"
	CHECK	rsp, rbx
	; 16-bit: RIP and RSP are 16 bits wide; low memory has code for it.
	sub	rsp, 10
	mov	word [rsp], low_code
	mov	word [rsp + 2], SEL_CODE
	mov	word [rsp + 4], 2 | CF
	mov	word [rsp + 6], 0x7000
	mov	word [rsp + 8], SEL_DATA
	iretw
.iretw:
	HOLDS	c, "flags of iretw"
	CHECK	rsp, 0x7000
	mov	rsp, rbx
%endif
	; RIP that is not canonical.
	PUSH_FRAME rax, SEL_CODE, 2, rbx, SEL_DATA
	mov	rax, 0x800000000000
	mov	[rsp], rax
	FAULT	EXC_GP, 0, iretq
	add	rsp, 40
	; NT.
	PUSH_FRAME qword .target, SEL_CODE, 2, rbx, SEL_DATA
	push	NT | 2
	popfq
	FAULT	EXC_GP, 0, iretq
	add	rsp, 40
	; Code segments.
	IRET_FAULT EXC_GP, 0, 0, 2, rbx, SEL_DATA
	IRET_FAULT EXC_GP, 0, 3, 2, rbx, SEL_DATA
	IRET_FAULT EXC_GP, 0x1000, 0x1003, 2, rbx, SEL_USER_DATA
	IRET_FAULT EXC_GP, SEL_DATA, SEL_DATA, 2, rbx, SEL_DATA
	IRET_FAULT EXC_GP, SEL_USER_CODE64 & ~3, SEL_USER_CODE64 & ~3, 2, rbx, SEL_DATA
	IRET_FAULT EXC_GP, SEL_CODE, SEL_CODE | 3, 2, rbx, SEL_USER_DATA
	SET_DESCRIPTOR S(0), 0, 0, 0x601b + 0x80	; L and D
	IRET_FAULT EXC_GP, S(0), S(0), 2, rbx, SEL_DATA
	SET_DESCRIPTOR S(0), 0, 0, 0x201b
	IRET_FAULT EXC_NP, S(0), S(0), 2, rbx, SEL_DATA
	; Stack segments.
	IRET_FAULT EXC_GP, 0, SEL_USER_CODE64, 2, user_stack_top, 3
	IRET_FAULT EXC_GP, 0, SEL_USER_CODE64, 2, user_stack_top, 0
	IRET_FAULT EXC_GP, 0, SEL_CODE32, 2, rbx, 0
	IRET_FAULT EXC_GP, SEL_DATA, SEL_USER_CODE64, 2, user_stack_top, SEL_DATA
	IRET_FAULT EXC_GP, SEL_USER_DATA & ~3, SEL_USER_CODE64, 2, user_stack_top, SEL_USER_DATA & ~3
	IRET_FAULT EXC_GP, SEL_USER_CODE32 & ~3, SEL_USER_CODE64, 2, user_stack_top, SEL_USER_CODE32
	IRET_FAULT EXC_GP, 0x1000, SEL_USER_CODE64, 2, user_stack_top, 0x1003
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc073
%ifndef ON_BOCHS			; it gives #NP; processors give #SS
	IRET_FAULT EXC_SS, S(0), SEL_USER_CODE64, 2, user_stack_top, S(0) | 3
%endif
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc0f1
	IRET_FAULT EXC_GP, S(0), SEL_USER_CODE64, 2, user_stack_top, S(0) | 3

	; To CPL 3, 64-bit and compatibility mode; data segments that it must not keep become null.
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc09f
	mov	eax, S(0)
	mov	fs, eax
	mov	eax, SEL_DATA
	mov	es, eax
	mov	eax, SEL_USER_DATA
	mov	gs, eax
	USER	.ud
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_es], 0
	CHECK	[caught_fs], S(0)
	CHECK	[caught_gs], SEL_USER_DATA
	USER32	.code32
	CAUGHT	EXC_UD, 0, .code32_ud
	CHECK	[caught_cs], SEL_USER_CODE32
	CHECK	rax, 0x12345678		; the upper half is undefined by the manual, zero in fact
	; An upper half of RSP does not get into compatibility mode.
	; Flags: CPL 3 with IOPL 0 changes neither IF nor IOPL.
	USER	.user_iret
	CAUGHT	EXC_UD, 0, .user_target
	CHECK_BITS [caught_flags], IF | IOPL3 | CF | AC | ID | VM | VIF | VIP, CF | AC | ID
	USER	.user_iret, 2 | IF
	CAUGHT	EXC_UD, 0, .user_target
	CHECK_BITS [caught_flags], IF | IOPL3, IF
	USER	.user_iret, 2 | IOPL3
	CAUGHT	EXC_UD, 0, .user_target
	CHECK_BITS [caught_flags], IF | IOPL3, IF | IOPL3
	; VM is ignored in 64-bit mode.
	USER	.ud, 2 | VM | CF
	CAUGHT	EXC_UD, 0, .ud
	CHECK_BITS [caught_flags], VM | CF, CF
	; From CPL 3 to CPL 3; to an inner level it is refused.
	USER	.user_inner
	CAUGHT	EXC_GP, SEL_CODE, .user_inner_at
	USER	.user_to_32
	CAUGHT	EXC_UD, 0, .code32_ud
	CHECK	[caught_xsp], user_stack_top - 0x200
	ret
.target:
.ud:	ud2
.user_iret:
	PUSH_FRAME qword .user_target, SEL_USER_CODE64, 2 | CF | AC | ID | IF | IOPL3 | VIF | VIP, qword user_stack_top, SEL_USER_DATA
	iretq
.user_target:
	ud2
.user_inner:
	PUSH_FRAME qword .target, SEL_CODE, 2, qword user_stack_top, SEL_DATA
.user_inner_at:
	iretq
	ud2
.user_to_32:
	PUSH_FRAME qword .code32, SEL_USER_CODE32, 2, qword user_stack_top - 0x200, SEL_USER_DATA
	iretq
	ud2
bits 32
.code32:
	mov	eax, 0x12345678
.code32_ud:
	ud2
bits 64

%ifdef ON_BOCHS
guest_main.iretw:
%endif
section .real
bits 64
low_code:
	lea	rax, [abs guest_main.iretw]
	jmp	rax
