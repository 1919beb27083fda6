; #AC: at CPL 3 with CR0.AM and EFLAGS.AC, for operands that are not aligned by their size (SDM 3A 6.15 interrupt 17).
%define GUEST "alignment"
%define GUEST_BITS 64
%include "guest.inc"

%define AT_AC AT_AC_ __?LINE?__,
%macro AT_AC_ 3+			; line, faults or not, instruction
	jmp	%%past
%%at:	%3
%%end:	ud2
%%past:
	USER	%%at, 2 | AC
%if %2
	CAUGHT_	%1, EXC_AC, 0, %%at
%else
	CAUGHT_	%1, EXC_UD, 0, %%end
%endif
%endmacro

guest_main:
	; AM or AC alone do nothing.
	mov	rbx, buffer
	AT_AC	0, mov eax, [rbx + 1]
	SET_CR	cr0, CR0_AM
	USER_WORKS mov eax, [rbx + 1]
	; Not at CPL 0.
	push	AC | 2
	popfq
	WORKS	mov eax, [rbx + 1]
	push	2
	popfq
%ifndef ON_TCG
	AT_AC	1, mov eax, [rbx + 1]
	AT_AC	1, mov eax, [rbx + 2]
	AT_AC	1, mov [rbx + 3], eax
	AT_AC	1, mov ax, [rbx + 1]
	AT_AC	1, mov rax, [rbx + 4]
	AT_AC	1, add [rbx + 1], eax
	AT_AC	1, lock add [rbx + 1], eax
	AT_AC	1, xchg [rbx + 1], eax
	AT_AC	1, push qword [rbx + 1]
	AT_AC	1, cmpxchg8b [rbx + 4]
	AT_AC	1, fld dword [rbx + 2]
	AT_AC	1, fld qword [rbx + 4]
	AT_AC	1, fld tword [rbx + 4]
	AT_AC	1, bt dword [rbx + 2], 3
	AT_AC	1, call [rbx + 1]
	AT_AC	1, cmp dword [rbx + 3], 1
	AT_AC	1, movq mm0, [rbx + 4]
	AT_AC	1, cvtsi2ss xmm0, dword [rbx + 2]
	AT_AC	1, movnti [rbx + 2], eax
	CHECK	[caught_error], 0
	AT_AC	0, mov eax, [rbx + 4]
	AT_AC	0, mov al, [rbx + 1]
	AT_AC	0, mov ax, [rbx + 2]
	AT_AC	0, mov rax, [rbx + 8]
	AT_AC	0, fld tword [rbx + 8]
	; SSE's aligned ones are #GP.
	USER	.movaps, 2 | AC
	CAUGHT	EXC_GP, 0, .movaps
	; String instructions, element by element.
	mov	rsi, buffer + 1
	mov	rdi, buffer + 0x40
	mov	ecx, 2
	AT_AC	1, rep movsd
	CHECK	rcx, 2
	AT_AC	0, rep movsb
	; The stack.
	ENTER_AT SEL_USER_CODE64, .push, SEL_USER_DATA, user_stack_top - 4, 2 | AC
	CAUGHT	EXC_AC, 0, .push
	ENTER_AT SEL_USER_CODE64, .push, SEL_USER_DATA, user_stack_top - 8, 2 | AC
	CAUGHT	EXC_UD, 0, .push + 1
	ENTER_AT SEL_USER_CODE64, .call, SEL_USER_DATA, user_stack_top - 1, 2 | AC
	CAUGHT	EXC_AC, 0, .call
	; Instruction fetches are never checked.
	USER	.odd + 1, 2 | AC
	CAUGHT	EXC_UD, 0
	; Compatibility mode.
	mov	eax, SEL_USER_DATA
	mov	ds, eax
	ENTER_AT SEL_USER_CODE32, .code32, SEL_USER_DATA, user_stack_top, 2 | AC
	CAUGHT	EXC_AC, 0, .code32
	; The user sets AC by himself.
	USER	.popf
	CAUGHT	EXC_AC, 0, .popf_at
%endif
	CLEAR_CR cr0, CR0_AM
	ret
.movaps:
	movaps	xmm0, [rbx + 8]
	ud2
.push:	push	rax
	ud2
.call:	call	.push
	align	4
.odd:	nop
	ud2
.popf:	push	AC | 2
	popfq
.popf_at:
	mov	eax, [rbx + 1]
	ud2
bits 32
.code32:
	mov	eax, [ebx + 1]
	ud2
bits 64

section .data
	align	64
buffer:	times 256 db 0
