; Call gates in long mode, and far transfers of 64-bit and compatibility mode (SDM 3A 5.8.3.1, 2A CALL, JMP, RET).
%define GUEST "callgate64"
%define GUEST_BITS 64
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)
%define G S(0)			; the gate: two entries

; SET_GATE64 access, selector, target
%macro SET_GATE64 3
	SET_CALL_GATE G, %1, %2, %3
	mov	dword [gdt + G + 8], 0
	mov	dword [gdt + G + 12], 0
%endmacro

guest_main:
	mov	dword [pointer], 0
	mov	word [pointer + 4], G | 3
	call	same_level
	call	refused
	call	inner
	call	far_transfers
	call	compatibility
	ret

same_level:
	SET_GATE64 0xec, SEL_CODE, target
	mov	rbx, rsp
	mov	word [pointer + 4], G
	CATCH	.called
	call	far dword [pointer]
.back:
.called:
	CAUGHT	EXC_BP, 0, target_end
	lea	rax, [rbx - 16]
	CHECK	[caught_xsp], rax
	CHECK	rcx, .back
	CHECK	rdx, SEL_CODE
	CATCH	.jumped
	jmp	far dword [pointer]
.jumped:
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_xsp], rbx
	SET_GATE64 0xec, SEL_CODE, returns
	call	far dword [pointer]
	CHECK	rsp, rbx
	ret

refused:
	SET_GATE64 0x8c, SEL_CODE, target
	mov	word [pointer + 4], G | 3
	FAULT	EXC_GP, G, call far dword [pointer]
	USER_FAULT EXC_GP, G, call far dword [pointer]
	mov	word [pointer + 4], G
	SET_GATE64 0x0c, SEL_CODE, target
	FAULT	EXC_NP, G, call far dword [pointer]
	SET_GATE64 0xec, 0, target
	FAULT	EXC_GP, 0, call far dword [pointer]
	SET_GATE64 0xec, 0x1000, target
	FAULT	EXC_GP, 0x1000, call far dword [pointer]
	SET_GATE64 0xec, SEL_DATA, target
	FAULT	EXC_GP, SEL_DATA, call far dword [pointer]
	SET_GATE64 0xec, SEL_CODE32, target	; the target must be 64-bit code
	FAULT	EXC_GP, SEL_CODE32, call far dword [pointer]
	FAULT	EXC_GP, SEL_CODE32, jmp far dword [pointer]
	SET_GATE64 0xec, SEL_USER_CODE64, target
	FAULT	EXC_GP, SEL_USER_CODE64 & ~3, call far dword [pointer]
	SET_DESCRIPTOR S(2), 0, 0, 0x201b
	SET_GATE64 0xec, S(2), target
	FAULT	EXC_NP, S(2), call far dword [pointer]
	SET_GATE64 0xec, SEL_CODE, target
	USER_FAULT EXC_GP, SEL_CODE, jmp far dword [pointer]
	mov	dword [gdt + G + 8], 0x8000	; not canonical
	FAULT	EXC_GP, 0, call far dword [pointer]
	mov	dword [gdt + G + 8], 0
	; The upper half's type field must be 0.
	mov	dword [gdt + G + 12], 0x0100
	FAULT	EXC_GP, G, call far dword [pointer]
	mov	dword [gdt + G + 12], 0
	; 16-bit gates, task gates and TSSs are no targets in long mode.
	SET_GATE64 0xe4, SEL_CODE, target
	FAULT	EXC_GP, G, call far dword [pointer]
	SET_GATE64 0xe5, SEL_TSS, target
	FAULT	EXC_GP, G, call far dword [pointer]
	mov	word [pointer + 4], SEL_TSS
	FAULT	EXC_GP, SEL_TSS, call far dword [pointer]
	FAULT	EXC_GP, SEL_TSS, jmp far dword [pointer]
	; A gate that ends beyond the table.
	mov	word [gdtr], G + 14
	lgdt	[gdtr]
	SET_GATE64 0xec, SEL_CODE, target
	mov	word [pointer + 4], G
	FAULT	EXC_GP, G, call far dword [pointer]
	mov	word [gdtr], GDT_ENTRIES * 8 - 1
	lgdt	[gdtr]
	ret

inner:
	mov	word [pointer + 4], G | 3
	SET_GATE64 0xec, SEL_CODE, target
	USER	.call
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_cs], SEL_CODE
	CHECK	[caught_ss], 0		; null
	CHECK	[caught_xsp], stack0_top - 32
	CHECK	[stack0_top - 8], SEL_USER_DATA
	CHECK	[stack0_top - 16], user_stack_top
	CHECK	[stack0_top - 24], SEL_USER_CODE64
	CHECK	[stack0_top - 32], .call_end
	; The whole way needs a 64-bit RETF.
	SET_GATE64 0xec, SEL_CODE, returns
	USER	.call
	CAUGHT	EXC_UD, 0, .call_end
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_cs], SEL_USER_CODE64
	CHECK	[caught_ss], SEL_USER_DATA
	; From compatibility mode; RSP0 is not aligned here.
	sub	dword [tss + 4], 4
	SET_GATE64 0xec, SEL_CODE, target
	USER32	.call32
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_xsp], stack0_top - 36
	CHECK	[stack0_top - 12], SEL_USER_DATA
	CHECK	[stack0_top - 20], user_stack_top
	CHECK	[stack0_top - 28], SEL_USER_CODE32
	CHECK	[stack0_top - 36], .call32_end
	mov	dword [tss + 4], stack0_top
	SET_GATE64 0xec, SEL_CODE, returns
	USER32	.call32
	CAUGHT	EXC_UD, 0, .call32_end
	CHECK	[caught_cs], SEL_USER_CODE32
	; A stack in the TSS that is not canonical: #SS.
	mov	dword [tss + 8], 0x8000
	GATE	EXC_SS, STUB(EXC_SS), 0x8e, SEL_CODE, 1
	USER	.call
	CATCH_END
	CHECK	[caught_vector], EXC_SS
	CHECK	[caught_ip], .call
	mov	dword [tss + 8], 0
	GATE	EXC_SS, STUB(EXC_SS)
	; Conforming: the stack stays.
	SET_DESCRIPTOR S(2), 0, 0, 0x209f
	SET_GATE64 0xec, S(2), .ud
	USER	.call
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_cs], S(2) | 3
	CHECK	[caught_xsp], user_stack_top - 16
	ret
.call:	call	far dword [pointer]
.call_end:
.ud:	ud2
bits 32
.call32:
	call	G | 3:0
.call32_end:
	ud2
bits 64

far_transfers:
	; Same level, 32-bit offset from memory; RETF with 32- and 64-bit operands.
	mov	word [pointer + 4], SEL_CODE
	mov	dword [pointer], .called
	mov	rbx, rsp
	call	far dword [pointer]
.back:
	CHECK	rsp, rbx
	mov	word [pointer + 4], 0
	FAULT	EXC_GP, 0, jmp far dword [pointer]
	mov	word [pointer + 4], SEL_DATA
	FAULT	EXC_GP, SEL_DATA, jmp far dword [pointer]
	FAULT	EXC_GP, SEL_DATA, call far dword [pointer]
	mov	word [pointer + 4], SEL_USER_CODE64
	FAULT	EXC_GP, SEL_USER_CODE64 & ~3, jmp far dword [pointer]
	SET_DESCRIPTOR S(2), 0, 0, 0x609b	; L and D
	mov	word [pointer + 4], S(2)
	FAULT	EXC_GP, S(2), jmp far dword [pointer]
	FAULT	EXC_GP, S(2), call far dword [pointer]
	; RETFQ.
	push	qword SEL_CODE
	mov	rax, 0x800000000000
	push	rax
	FAULT	EXC_GP, 0, o64 retf
	mov	qword [rsp], .retfq
	o64	retf
.retfq:
	CHECK	rsp, rbx
	; To level 3 by RETFQ, into both modes.
	mov	eax, SEL_DATA
	mov	es, eax
	CATCH	.user
	push	qword SEL_USER_DATA
	push	qword user_stack_top
	push	qword SEL_USER_CODE64
	push	qword .ud
	o64	retf
.user:
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_es], 0
	CATCH	.user32
	push	qword SEL_USER_DATA
	push	qword user_stack_top - 64
	push	qword 1
	push	qword 2
	push	qword SEL_USER_CODE32
	push	qword .ud
	o64	retf	16
.user32:
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_xsp], user_stack_top - 64 + 16
	CHECK	[caught_cs], SEL_USER_CODE32
	; RETF to level 3 with a null SS.
	push	qword 3
	push	qword user_stack_top
	push	qword SEL_USER_CODE64
	push	qword .ud
	FAULT	EXC_GP, 0, o64 retf
	add	rsp, 32
	CHECK	rsp, rbx
	ret
.called:
	; 32-bit operands: two doublewords.
	CHECK32	[rsp], .back
	CHECK32	[rsp + 4], SEL_CODE
	lea	rax, [rbx - 8]
	CHECK	rsp, rax
	retf
.ud:	ud2

; CPL 0 compatibility mode and back.
compatibility:
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	[saved], rsp
	mov	word [pointer + 4], SEL_CODE32
	mov	dword [pointer], .code32
	mov	rax, 0x1111111122222222
	mov	r8, 0x3333333344444444
	mov	r15, r8
	jmp	far dword [pointer]
.back:
	CHECK	rsp, [saved]
	mov	rax, 0x3333333344444444
	CHECK	r8, rax			; what 32-bit code cannot name it does not touch
	CHECK	r15, rax
	CHECK	rcx, 0x55
	CHECK	rdx, 0x66
	ret
bits 32
.code32:
	push	dword 0x55
	pop	ecx
	call	SEL_CODE32:.far32
	mov	eax, [nothing]
	jmp	SEL_CODE:.back
.far32:
	mov	edx, 0x66
	inc	eax			; 40h: INC, not REX
	retf
bits 64

target:
	mov	rcx, [rsp]
	mov	rdx, [rsp + 8]
	int3
target_end:
	ud2
returns:
	o64 retf

section .data
	align	8
pointer: dd 0, 0
saved:	dq 0
nothing: dd 0
