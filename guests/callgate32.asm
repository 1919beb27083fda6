; Call gates of 32-bit protected mode, 32- and 16-bit: privilege, parameters, stacks, error codes (SDM 3A 5.8.3 to
; 5.8.6).
%define GUEST "callgate32"
%define GUEST_BITS 32
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)
%define G S(0)			; the gate

guest_main:
	call	same_level
	call	refused
	call	inner
	call	sixteen_bit
	call	conforming
	call	bad_stacks
	ret

same_level:
	SET_CALL_GATE G, 0x8c, SEL_CODE32, target, 3	; parameters are not copied here
	mov	ebx, esp
	CATCH	.called
	call	G:0x12345678		; the offset is ignored
.back:
.called:
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_cs], SEL_CODE32
	lea	eax, [ebx - 8]
	CHECK	[caught_xsp], eax
	CHECK	ecx, .back
	CHECK	edx, SEL_CODE
	CATCH	.jumped
	jmp	G:0
.jumped:
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_xsp], ebx
	; And back.
	SET_CALL_GATE G, 0x8c, SEL_CODE32, returns
	call	G:0
	CHECK	esp, ebx
	mov	eax, cs
	CHECK	eax, SEL_CODE
	; The accessed bit of the target.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc09a
	SET_CALL_GATE G, 0x8c, S(1), returns
	call	G:0
%ifndef ON_TCG
	CHECK8	[gdt + S(1) + 5], 0x9b
%endif
	; Through memory.
	mov	dword [pointer], 0
	mov	word [pointer + 4], G
	call	far [pointer]
	CHECK	esp, ebx
	ret

refused:
	SET_CALL_GATE G, 0x8c, SEL_CODE, target
	USER_FAULT EXC_GP, G, call G | 3:0	; DPL 0
	FAULT	EXC_GP, G, call G | 1:0		; RPL counts
	FAULT	EXC_GP, G, jmp G | 3:0
	SET_CALL_GATE G, 0x6c, SEL_CODE, target
	FAULT	EXC_NP, G, call G:0
	USER_FAULT EXC_NP, G, call G | 3:0
	SET_CALL_GATE G, 0x0c, SEL_CODE, target
	USER_FAULT EXC_GP, G, call G | 3:0	; privilege before presence
	SET_CALL_GATE G, 0xec, 0, target
	FAULT	EXC_GP, 0, call G:0
	USER_FAULT EXC_GP, 0, call G | 3:0
	SET_CALL_GATE G, 0xec, 0x1000, target
	FAULT	EXC_GP, 0x1000, call G:0
	SET_CALL_GATE G, 0xec, SEL_DATA, target
	FAULT	EXC_GP, SEL_DATA, call G:0
	SET_CALL_GATE G, 0xec, G, target
	FAULT	EXC_GP, G, call G:0
	SET_CALL_GATE G, 0xec, SEL_USER_CODE32, target
	FAULT	EXC_GP, SEL_USER_CODE32 & ~3, call G:0 ; to an outer level
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc01b
	SET_CALL_GATE G, 0xec, S(1), target
	FAULT	EXC_NP, S(1), call G:0
	USER_FAULT EXC_NP, S(1), call G | 3:0
	; JMP never goes to an inner level.
	SET_CALL_GATE G, 0xec, SEL_CODE, target
	USER_FAULT EXC_GP, SEL_CODE, jmp G | 3:0
%ifndef ON_TCG
	SET_DESCRIPTOR S(1), 0, 0xfff, 0x409b
	SET_CALL_GATE G, 0xec, S(1), target
	FAULT	EXC_GP, 0, call G:0
	FAULT	EXC_GP, 0, jmp G:0
	mov	ebx, [user_stack_top - 4]
	USER_FAULT EXC_GP, 0, call G | 3:0
%endif
	; Other system types are no targets.
	SET_DESCRIPTOR G, 0, 0, 0x008e
	FAULT	EXC_GP, G, call G:0
	SET_DESCRIPTOR G, 0, 0, 0x0082
	FAULT	EXC_GP, G, jmp G:0
	ret

; From level 3 with parameters.
inner:
	mov	dword [user_stack_top - 4], 0x11111111
	mov	dword [user_stack_top - 8], 0x22222222
	mov	dword [user_stack_top - 12], 0x33333333
	SET_CALL_GATE G, 0xec, SEL_CODE, target, 3
	ENTER_AT SEL_USER_CODE32, .call, SEL_USER_DATA, user_stack_top - 12
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_cs], SEL_CODE
	CHECK	[caught_handler_ss], SEL_DATA
	CHECK	[caught_xsp], stack0_top - 7 * 4
	CHECK	[stack0_top - 4], SEL_USER_DATA
	CHECK	[stack0_top - 8], user_stack_top - 12
	CHECK	[stack0_top - 12], 0x11111111
	CHECK	[stack0_top - 16], 0x22222222
	CHECK	[stack0_top - 20], 0x33333333
	CHECK	[stack0_top - 24], SEL_USER_CODE32
	CHECK	[stack0_top - 28], .call_end
	; The whole way: RETF n releases the parameters of both stacks.
	SET_CALL_GATE G, 0xec, SEL_CODE, returns12, 3
	ENTER_AT SEL_USER_CODE32, .call, SEL_USER_DATA, user_stack_top - 12
	CAUGHT	EXC_UD, 0, .call_end
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_cs], SEL_USER_CODE32
	; 31 parameters.
	SET_CALL_GATE G, 0xec, SEL_CODE, target, 31
	ENTER_AT SEL_USER_CODE32, .call, SEL_USER_DATA, user_stack_top - 124
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_xsp], stack0_top - 35 * 4
	CHECK	[stack0_top - 12], 0x11111111
	; With RPL 0 in the target selector of the gate, CPL is DPL of the code.
	SET_CALL_GATE G, 0xec, SEL_CODE | 3, target
	ENTER_AT SEL_USER_CODE32, .call, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_BP, 0, target_end
	CHECK	[caught_cs], SEL_CODE
	; From level 3 to level 1, and from there to 0 by the catcher.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc0bb
	SET_DESCRIPTOR S(2), 0, 0xfffff, 0xc0b3
	mov	dword [tss + 12], ist_tops
	mov	dword [tss + 16], S(2) | 1
	SET_CALL_GATE G, 0xec, S(1), .level1
	ENTER_AT SEL_USER_CODE32, .call, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_UD, 0, .level1
	CHECK	[caught_cs], S(1) | 1
	CHECK	[caught_ss], S(2) | 1
	CHECK	[caught_xsp], ist_tops - 16
	ret
.call:	call	G | 3:0
.call_end:
	ud2
.level1:
	ud2

; A 16-bit gate copies words, pushes words, takes 16 bits of offset.
sixteen_bit:
	SET_DESCRIPTOR S(1), 0, 0xffff, 0x409b
	SET_BASE S(1), target16
	mov	dword [gdt + G], S(1) << 16
	mov	dword [gdt + G + 4], 0xffffe402	; type 4, DPL 3, 2 parameters; the upper offset is ignored
%ifdef ON_TCG
	mov	word [gdt + G + 6], 0
%endif
	mov	dword [user_stack_top - 4], 0xaaaabbbb
	ENTER_AT SEL_USER_CODE32, inner.call, SEL_USER_DATA, user_stack_top - 4
	CAUGHT	EXC_BP, 0, 1
	CHECK	[caught_cs], S(1)
	CHECK	[caught_xsp], stack0_top - 12
	CHECK16	[stack0_top - 2], SEL_USER_DATA
	mov	eax, user_stack_top - 4
	movzx	eax, ax
	CHECK16	[stack0_top - 4], eax
	CHECK32	[stack0_top - 8], 0xaaaabbbb
	CHECK16	[stack0_top - 10], SEL_USER_CODE32
	mov	eax, inner.call_end
	movzx	eax, ax
	CHECK16	[stack0_top - 12], eax
	ret

; Conforming code runs at the caller's level, on the caller's stack.
conforming:
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc09f
	SET_CALL_GATE G, 0xec, S(1), .ud, 4
	USER	inner.call
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_cs], S(1) | 3
	CHECK	[caught_xsp], user_stack_top - 8
	USER	.jump
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_cs], S(1) | 3
	CHECK	[caught_xsp], user_stack_top
	ret
.jump:	jmp	G | 3:0
.ud:	ud2

; Level 1's stack is the bad one, so that the exception itself finds a good one.
bad_stacks:
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc0bb
	SET_CALL_GATE G, 0xec, S(1), inner.level1, 2
%define BAD_SS1 BAD_SS1_ __?LINE?__,
%macro BAD_SS1_ 4
	mov	dword [tss + 16], %2
	USER	inner.call
	CAUGHT_	%1, %3, %4, inner.call
	CHECK_	%1, [caught_xsp], user_stack_top
%endmacro
	BAD_SS1	0, EXC_TS, 0
	BAD_SS1	1, EXC_TS, 0
	BAD_SS1	0x1001, EXC_TS, 0x1000
	BAD_SS1	S(2), EXC_TS, S(2)
	BAD_SS1	SEL_DATA, EXC_TS, SEL_DATA
	BAD_SS1	SEL_DATA | 1, EXC_TS, SEL_DATA
	SET_DESCRIPTOR S(2), 0, 0xfffff, 0xc0b1
	BAD_SS1	S(2) | 1, EXC_TS, S(2)
	SET_DESCRIPTOR S(2), 0, 0xfffff, 0xc033
	BAD_SS1	S(2) | 1, EXC_SS, S(2)
%ifndef ON_TCG
	SET_DESCRIPTOR S(2), FREE_MEMORY, 0xfff, 0x40b3
	mov	dword [tss + 12], 20		; 24 are needed
	BAD_SS1	S(2) | 1, EXC_SS, S(2)
	mov	dword [tss + 12], 24
	USER	inner.call
	CAUGHT	EXC_UD, 0, inner.level1
	CHECK	[caught_xsp], 0
%endif
	ret

target:
	mov	ecx, [esp]
	mov	edx, [esp + 4]
	int3
target_end:
	ud2
returns:
	retf
returns12:
	retf	12

bits 16
target16:
	int3
bits 32

section .data
	align	8
pointer: dd 0, 0
