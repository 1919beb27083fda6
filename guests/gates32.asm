; 32-bit protected mode: interrupt, trap and 16-bit gates, software interrupts, stacks of inner levels, error codes;
; IRET within and between levels (SDM 3A 6.12, 6.13).
%define GUEST "gates32"
%define GUEST_BITS 32
%include "guest.inc"

%define V 0x90
%define S(n) (SEL_FREE + (n) * 8)

guest_main:
	call	causes
	call	flags
	call	gates
	call	inner_stack
	call	iret
	call	low_bits
	ret

causes:
	xor	ecx, ecx
	FAULT	EXC_DE, 0, div ecx
	FAULT	EXC_DE, 0, {db 0xd4, 0}		; AAM 0
	TRAP	EXC_BP, int3
	mov	al, 0x7f
	inc	al
	TRAP	EXC_OF, into
	xor	eax, eax
	WORKS	into
	mov	dword [bounds], 10
	mov	dword [bounds + 4], 20
	mov	eax, 10
	WORKS	bound eax, [bounds]
	mov	eax, 20
	WORKS	bound eax, [bounds]
	mov	eax, 21
	FAULT	EXC_BR, 0, bound eax, [bounds]
	mov	eax, -1
	FAULT	EXC_BR, 0, bound eax, [bounds]
	FAULT	EXC_UD, 0, ud2
	FAULT	EXC_UD, 0, {db 0xf0, 0x90}
	TRAP	EXC_DB, {db 0xf1}
	ret

flags:
	HOOK	V, .handler
	GATE	V, STUB(V), 0x8e
	push	dword IF | CF | SF | 2
	popfd
	int	V
	CHECK_BITS [seen_flags], IF | TF | NT | RF | VM, 0
	CHECK_BITS [pushed_flags], IF | CF | SF | RF, IF | CF | SF
	GATE	V, STUB(V), 0x8f
	int	V
	CHECK_BITS [seen_flags], IF | TF | NT | RF | VM, IF
	push	dword 2
	popfd
	HOOK	V, 0
	push	dword NT | 2
	popfd
	TRAP	EXC_BP, int3
	CHECK_BITS [caught_flags], NT, NT
	FAULT	EXC_UD, 0, ud2
%ifndef ON_TCG
	CHECK_BITS [caught_flags], RF, RF
%endif
	ret
.handler:
	mov	eax, [edi + FRAME.flags]
	mov	[pushed_flags], eax
	pushfd
	pop	dword [seen_flags]
	ret

gates:
	GATE	V, STUB(V), 0x0e
	FAULT	EXC_NP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x8c		; a call gate is none
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x89
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x9e
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x8e, 0
	FAULT	EXC_GP, 0, int V
	GATE	V, STUB(V), 0x8e, 0x1000
	FAULT	EXC_GP, 0x1000, int V
	GATE	V, STUB(V), 0x8e, SEL_DATA
	FAULT	EXC_GP, SEL_DATA, int V
	GATE	V, STUB(V), 0x8e, SEL_USER_CODE32
	FAULT	EXC_GP, SEL_USER_CODE32 & ~3, int V
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc01b
	GATE	V, STUB(V), 0x8e, S(0)
	FAULT	EXC_NP, S(0), int V
%ifndef ON_TCG
	SET_DESCRIPTOR S(0), 0, 0xfff, 0x409b	; the target is outside the limit
	FAULT	EXC_GP, 0, int V
%endif
	; Beyond the IDT's limit.
	GATE	V, STUB(V)
	mov	word [idtr], V * 8 + 6
	lidt	[idtr]
	FAULT	EXC_GP, V * 8 + 2, int V
	inc	word [idtr]
	lidt	[idtr]
	TRAP	V, int V
	mov	word [idtr], 256 * 8 - 1
	lidt	[idtr]
	; DPL.
	GATE	V, STUB(V), 0xae
	TRAP	V, int V
	USER_FAULT EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0xee
	USER	.int_v
	CAUGHT	V, 0, .int_v + 2
	CHECK	[caught_frame], stack0_top - 20
	CHECK	[caught_ss], SEL_USER_DATA
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_handler_ss], SEL_DATA
	USER_FAULT EXC_GP, EXC_BP * 8 + 2, int3
	; A 16-bit interrupt gate pushes words: FLAGS, CS, IP.
	SET_DESCRIPTOR S(0), 0, 0xffff, 0x409b
	SET_BASE S(0), handler16
	mov	word [idt + V * 8], 0
	mov	word [idt + V * 8 + 2], S(0)
	mov	word [idt + V * 8 + 4], 0x8600
%ifndef ON_TCG
	mov	word [idt + V * 8 + 6], 0xffff	; ignored
%else
	mov	word [idt + V * 8 + 6], 0
%endif
	mov	ebx, esp
	mov	dword [resume_at], .back16
	jmp	.from16
.from16:
	int	V
.behind16:
	nop
.back16:
	mov	ecx, .behind16
	movzx	ecx, cx
	CHECK16	[seen16], ecx
	CHECK16	[seen16 + 2], SEL_CODE
	CHECK_BITS [seen16 + 4], IF | TF | DF, 0
	lea	eax, [ebx - 6]
	CHECK	[seen_esp], eax
	mov	esp, ebx
	; To conforming code from CPL 3: the level stays, and so does the stack.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc09f
	GATE	V, .user_handler, 0xee, S(1)
	USER	.int_v
	CAUGHT	EXC_UD, 0, .user_handler
	CHECK	[caught_cs], S(1) | 3
	CHECK	[caught_xsp], user_stack_top - 12
	GATE	V, STUB(V)
	ret
.int_v:	int	V
	ud2
.user_handler:
	ud2

; What can be wrong with SS0:ESP0.
inner_stack:
	; The handler of #TS must not need SS0: a task gate would do; here #TS is taken at level 3 through conforming code.
	SET_DESCRIPTOR S(1), 0, 0xfffff, 0xc09f
	GATE	EXC_TS, .seen, 0x8e, S(1)
	GATE	EXC_SS, .seen, 0x8e, S(1)
	GATE	EXC_UD, STUB(EXC_UD), 0x8e
	GATE	EXC_DF, STUB(EXC_DF)
%macro BAD_SS0 4			; line, selector, vector, error
	mov	dword [tss + 8], %2
	mov	dword [seen_vector], 0
	mov	dword [user_error], -1
	GATE	EXC_TS, .ts, 0x8e, S(1)
	GATE	EXC_SS, .ss, 0x8e, S(1)
	mov	[saved_esp], esp
	mov	dword [resume_at], %%back
	USER	.ud
%%back:
	mov	esp, [saved_esp]
	CATCH_END
	CHECK_	%1, [seen_vector], %3
	CHECK_	%1, [user_error], %4
%endmacro
	GATE	V, .leave, 0xee
	BAD_SS0	__?LINE?__, 0, EXC_TS, 1
	BAD_SS0	__?LINE?__, 0x1000, EXC_TS, 0x1001
	BAD_SS0	__?LINE?__, SEL_USER_DATA, EXC_TS, (SEL_USER_DATA & ~3) | 1
	BAD_SS0	__?LINE?__, SEL_DATA | 1, EXC_TS, SEL_DATA | 1
	BAD_SS0	__?LINE?__, SEL_CODE, EXC_TS, SEL_CODE | 1
	SET_DESCRIPTOR S(2), 0, 0xfffff, 0xc091
	BAD_SS0	__?LINE?__, S(2), EXC_TS, S(2) | 1
	SET_DESCRIPTOR S(2), 0, 0xfffff, 0xc013
	BAD_SS0	__?LINE?__, S(2), EXC_SS, S(2) | 1
	mov	dword [tss + 8], SEL_DATA
	; No room on the stack: #SS(SS0).
%ifndef ON_TCG
	SET_DESCRIPTOR S(2), FREE_MEMORY, 0xfff, 0x4093
	mov	dword [tss + 4], 16		; of 20 needed
	BAD_SS0	__?LINE?__, S(2), EXC_SS, S(2) | 1
	mov	dword [tss + 4], 0x1008
	BAD_SS0	__?LINE?__, S(2), EXC_SS, S(2) | 1
%endif
	mov	dword [tss + 8], SEL_DATA
	mov	dword [tss + 4], stack0_top
	GATE	EXC_TS, STUB(EXC_TS)
	GATE	EXC_SS, STUB(EXC_SS)
	mov	eax, SEL_DATA
	mov	es, eax
	USER	.ud
	CAUGHT	EXC_UD, 0, .ud
	ret
.ud:	ud2
; At level 3, error code on the user's stack. To level 0 again by INT V.
.ts:	mov	ebx, EXC_TS
	jmp	.seen
.ss:	mov	ebx, EXC_SS
.seen:	mov	ecx, [esp]
	mov	esi, esp
	mov	eax, SEL_USER_DATA
	mov	ds, eax
	mov	[seen_vector], ebx
	mov	[user_error], ecx
	mov	dword [tss + 8], SEL_DATA
	mov	dword [tss + 4], stack0_top
	int	V
.leave:
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	es, eax
	mov	esp, [saved_esp]
	jmp	[resume_at]

iret:
	; Same level: SS:ESP stay.
	pushfd
	push	dword SEL_CODE32
	push	dword .same
	mov	ebx, esp
	stc
	iretd
.same:
	add	ebx, 12
	CHECK	esp, ebx
	mov	eax, cs
	CHECK	eax, SEL_CODE32
	jmp	SEL_CODE:.flat
.flat:
%define IRET_FAULT IRET_FAULT_ __?LINE?__,
%macro IRET_FAULT_ 5			; line, vector, error, cs, ss
	push	dword %5
	push	dword user_stack_top
	push	dword 2
	push	dword %4
	push	dword .ud
	mov	ebx, esp
	FAULT_	%1, %2, %3, iretd
	CHECK_	%1, esp, ebx
	add	esp, 20
%endmacro
	IRET_FAULT EXC_GP, 0, 0, 0
	IRET_FAULT EXC_GP, 0x1000, 0x1003, SEL_USER_DATA
	IRET_FAULT EXC_GP, SEL_DATA, SEL_DATA, SEL_DATA
	IRET_FAULT EXC_GP, SEL_USER_CODE32 & ~3, SEL_USER_CODE32 & ~3, SEL_DATA
	IRET_FAULT EXC_GP, SEL_CODE, SEL_CODE | 3, SEL_USER_DATA
	IRET_FAULT EXC_GP, 0, SEL_USER_CODE32, 0
	IRET_FAULT EXC_GP, 0, SEL_USER_CODE32, 3
	IRET_FAULT EXC_GP, SEL_DATA, SEL_USER_CODE32, SEL_DATA
	IRET_FAULT EXC_GP, SEL_USER_DATA & ~3, SEL_USER_CODE32, SEL_USER_DATA & ~3
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc01b
	IRET_FAULT EXC_NP, S(0), S(0), SEL_DATA
	SET_DESCRIPTOR S(0), 0, 0xfffff, 0xc073
%ifndef ON_BOCHS			; it gives #NP; processors give #SS
	IRET_FAULT EXC_SS, S(0), SEL_USER_CODE32, S(0) | 3
%endif
	; Data segments are nulled, and flags guarded.
	mov	eax, SEL_DATA
	mov	gs, eax
	USER	.ud
	CAUGHT	EXC_UD, 0, .ud
	CHECK	[caught_gs], 0
	USER	.user_iret
	CAUGHT	EXC_UD, 0, .user_target
	CHECK_BITS [caught_flags], IF | IOPL3 | CF | VM, CF
	; POPF at CPL 3: IF and IOPL silently stay; with IOPL 3, IF changes.
	USER	.user_popf
	CAUGHT	EXC_UD, 0, .user_popf_end
	CHECK_BITS [caught_flags], IF | IOPL3 | CF, CF
	USER	.user_popf, 2 | IOPL3
	CAUGHT	EXC_UD, 0, .user_popf_end
	CHECK_BITS [caught_flags], IF | IOPL3 | CF, IF | IOPL3 | CF
	USER	.user_sti, 2 | IOPL3
	CAUGHT	EXC_UD, 0, .user_sti + 1
	CHECK_BITS [caught_flags], IF, IF
	ret
.ud:	ud2
.user_iret:
	push	dword 2 | CF | IF | IOPL3
	push	dword SEL_USER_CODE32
	push	dword .user_target
	iretd
.user_target:
	ud2
.user_popf:
	push	dword 2 | CF | IF | IOPL3
	popfd
.user_popf_end:
	ud2
.user_sti:
	sti
	ud2

; Odd things: 16-bit IRET, and a 16-bit data segment's upper ESP after it.
low_bits:
	; IRETW pops words; EIP's upper half is cleared, so it goes to low memory.
	push	word 2 | CF
	push	word SEL_CODE
	push	word low_code
	mov	[saved_esp], esp
	mov	dword [resume_at], .back
	db	0x66
	iretd
.back:
	HOLDS	c, "flags of iretw"
	mov	eax, [saved_esp]
	add	eax, 6
	CHECK	esp, eax
	; FLAGS' upper half is kept.
	ret

bits 32
handler16:
	mov	[seen_esp], esp
	mov	ax, [esp]
	mov	[seen16], ax
	mov	ax, [esp + 2]
	mov	[seen16 + 2], ax
	mov	ax, [esp + 4]
	mov	[seen16 + 4], ax
	jmp	SEL_CODE:.far
.far:	jmp	[resume_at]

section .real
bits 32
low_code:
	jmp	[resume_at]

section .data
	align	4
bounds:	dd 0, 0
seen_flags: dd 0
pushed_flags: dd 0
seen16:	dw 0, 0, 0, 0
seen_esp: dd 0
resume_at: dd 0
saved_esp: dd 0
seen_vector: dd 0
user_error: dd 0
