; Exceptions in 64-bit mode: error codes, stack alignment and switching, IST, gates that are wrong, software
; interrupts and DPL (SDM 3A 6.12 to 6.14).
%define GUEST "exceptions64"
%define GUEST_BITS 64
%include "guest.inc"

%define V 0x90			; the vector that the tests bend

guest_main:
	call	causes
	call	alignment
	call	flags
	call	stacks
	call	bad_gates
	call	software
	ret

causes:
	xor	ecx, ecx
	FAULT	EXC_DE, 0, div ecx
	mov	edx, 1
	mov	ecx, 1
	FAULT	EXC_DE, 0, div ecx		; quotient too large
	mov	eax, 0x80000000
	mov	edx, -1
	mov	ecx, -1
	FAULT	EXC_DE, 0, idiv ecx
	TRAP	EXC_DB, {db 0xf1}		; INT1
	TRAP	EXC_BP, int3
	TRAP	EXC_BP, {db 0xcd, 3}
	TRAP	EXC_OF, {db 0xcd, 4}
	FAULT	EXC_UD, 0, ud2
	FAULT	EXC_UD, 0, {db 0x0f, 0xb9, 0xc0} ; UD1
	FAULT	EXC_UD, 0, {db 0xce}		; INTO
	FAULT	EXC_UD, 0, {db 0x06}		; PUSH ES
	FAULT	EXC_UD, 0, {db 0x27}		; DAA
	FAULT	EXC_UD, 0, {db 0x60}		; PUSHA
	FAULT	EXC_UD, 0, {db 0x82, 0xc0, 0}
	FAULT	EXC_UD, 0, {db 0x9a, 0, 0, 0, 0, 8, 0} ; CALL ptr16:32
	FAULT	EXC_UD, 0, {db 0xea, 0, 0, 0, 0, 8, 0}
	FAULT	EXC_UD, 0, {db 0xd4, 10}	; AAM
	FAULT	EXC_UD, 0, {db 0xf0, 0x90}	; LOCK NOP
	FAULT	EXC_UD, 0, {db 0xf0, 0x01, 0xc0} ; LOCK with a register
	FAULT	EXC_UD, 0, {db 0xf0, 0x8b, 0x00} ; LOCK MOV
	FAULT	EXC_UD, 0, {db 0x8d, 0xc0}	; LEA with a register
	FAULT	EXC_UD, 0, {db 0x0f, 0xc7, 0xc8} ; CMPXCHG8B with a register
	FAULT	EXC_UD, 0, {db 0x8e, 0xc8}	; MOV CS
	FAULT	EXC_UD, 0, {db 0xc4, 0x00}	; VEX with nothing behind: XCR0 and OSXSAVE say no
	; 15 bytes are the longest instruction.
	WORKS	{db 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}
	FAULT	EXC_GP, 0, {db 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}
	; A REX prefix counts only right before the opcode.
	mov	eax, 0x11111111
	mov	rbx, -1
	WORKS	{db 0x48, 0x66, 0x89, 0xc3}	; MOV BX, AX
	CHECK	rbx, 0xffffffffffff1111
	; Not canonical: #GP, by the stack #SS.
	mov	rax, 0x800000000000
	FAULT	EXC_GP, 0, mov bl, [rax]
	mov	rax, 0xffff7fffffffffff
	FAULT	EXC_GP, 0, mov [rax], bl
	mov	rax, 0x7fffffffffff
	FAULT	EXC_GP, 0, mov ebx, [rax - 2]	; straddles the end: all of it not canonical at the far side
	mov	rbp, 0x800000000000
	FAULT	EXC_SS, 0, mov bl, [rbp]
	FAULT	EXC_GP, 0, mov bl, [rax + rbp]
	FAULT	EXC_SS, 0, {db 0x3e, 0x8a, 0x5d, 0} ; a DS prefix is ignored
	xchg	rax, rbp
	FAULT	EXC_GP, 0, {db 0x36, 0x8a, 0x18}	; an SS prefix too
	xchg	rax, rbp
	FAULT	EXC_GP, 0, {db 0x64, 0x8a, 0x5d, 0}
	mov	rax, -0x800000000000 - 0x1000
	FAULT	EXC_GP, 0, lgdt [rax]
	FAULT	EXC_GP, 0, lock inc dword [rax]
	FAULT	EXC_GP, 0, jmp rax
	FAULT	EXC_GP, 0, call rax
	WORKS	nop dword [rax]
	WORKS	lea rbx, [rax]
	WORKS	prefetcht0 [rax]
	; With a bad stack pointer the exception needs a stack of its own.
	GATE	EXC_SS, STUB(EXC_SS), 0x8e, SEL_CODE, 2
	mov	rdx, rsp
	mov	rax, -0x800000000000 - 0x1000
	CATCH	.bad_stack
	mov	rsp, rax
.push:	push	rax
.bad_stack:
	CAUGHT	EXC_SS, 0, .push
	mov	rax, -0x800000000000 - 0x1000
	CHECK	[caught_xsp], rax
	CHECK	[caught_frame], IST_TOP(2) - 40
	GATE	EXC_SS, STUB(EXC_SS)
	ret

; The CPU aligns RSP to 16 before it pushes.
alignment:
	mov	r12, rsp
	xor	ebx, ebx
.next:
	lea	r13, [r12 - 256]
	sub	r13, rbx
	CATCH	.caught
	mov	rsp, r13
	int3
.caught:
	CAUGHT	EXC_BP, 0
	CHECK	[caught_xsp], r13
	CHECK	[caught_ss], SEL_DATA
	and	r13, ~15
	sub	r13, 40
	CHECK	[caught_frame], r13
	CHECK	rsp, r12
	; The same with an error code.
	lea	r13, [r12 - 256]
	sub	r13, rbx
	mov	eax, 0x1000
	CATCH	.caught_error
	mov	rsp, r13
	mov	ds, eax
.caught_error:
	CAUGHT	EXC_GP, 0x1000
	and	r13, ~15
	sub	r13, 40
	CHECK	[caught_frame], r13
	inc	ebx
	cmp	ebx, 16
	jb	.next
	ret

; What the pushed and the handler's flags are.
flags:
	mov	dword [seen_flags], 0
	HOOK	V, .handler
	GATE	V, STUB(V), 0x8e		; interrupt gate
	push	IF | CF | SF | DF | AC | ID | 2
	popfq
	int	V
	cld
	CHECK_BITS [seen_flags], IF | TF | NT | RF | VM, 0
	CHECK_BITS [pushed_flags], IF | CF | SF | DF | AC | ID | RF, IF | CF | SF | DF | AC | ID
	GATE	V, STUB(V), 0x8f		; trap gate
	int	V
	cld
	CHECK_BITS [seen_flags], IF | TF | NT | RF | VM, IF
	cli
	push	2
	popfq
	HOOK	V, 0
	; NT is cleared (and would make IRETQ fault).
	push	NT | 2
	popfq
	TRAP	EXC_BP, int3
	CHECK_BITS [caught_flags], NT, NT
	; Faults push RF, traps do not.
	FAULT	EXC_UD, 0, ud2
%ifndef ON_TCG
	CHECK_BITS [caught_flags], RF, RF
%endif
	TRAP	EXC_BP, int3
	CHECK_BITS [caught_flags], RF, 0
	ret
.handler:
	mov	eax, [rdi + FRAME.flags]
	mov	[pushed_flags], eax
	pushfq
	pop	rax
	; CLD of the catcher aside, as the gate left them.
	mov	[seen_flags], eax
	ret

stacks:
	; From CPL 3: RSP0, SS null.
	USER	.user
	CAUGHT	EXC_UD, 0, .user
	CHECK	[caught_handler_ss], 0
	CHECK	[caught_frame], stack0_top - 40
	CHECK	[caught_ss], SEL_USER_DATA
	; RSP0 is aligned down.
	add	dword [tss + 4], -8 + 16 - 1
	sub	dword [tss + 4], 7 + 16
	USER	.user
	CHECK	[caught_frame], stack0_top - 16 - 40
	mov	dword [tss + 4], stack0_top
	; IST at the same privilege: SS stays.
	GATE	EXC_UD, STUB(EXC_UD), 0x8e, SEL_CODE, 1
	FAULT	EXC_UD, 0, ud2
	CHECK	[caught_frame], IST_TOP(1) - 40
	CHECK	[caught_handler_ss], SEL_DATA
	CHECK	[caught_xsp], rsp
	sub	dword [tss + 0x24], 5
	FAULT	EXC_UD, 0, ud2
	CHECK	[caught_frame], IST_TOP(1) - 16 - 40
	add	dword [tss + 0x24], 5
	USER	.user
	CHECK	[caught_frame], IST_TOP(1) - 40
	CHECK	[caught_handler_ss], 0
	GATE	EXC_UD, STUB(EXC_UD), 0x8e, SEL_CODE, 7
	FAULT	EXC_UD, 0, ud2
	CHECK	[caught_frame], IST_TOP(7) - 40
	; A stack pointer in the TSS that is not canonical: #SS, whose error code the manuals give differently.
	GATE	EXC_SS, STUB(EXC_SS), 0x8e, SEL_CODE, 2
	mov	dword [tss + 0x54 + 4], 0x8000
	CATCH	.ist
.at:	ud2
.ist:
%ifndef ON_TCG
	CHECK	[caught_vector], EXC_SS
	CHECK	[caught_ip], .at
	CATCH_END
%endif
	mov	dword [tss + 0x54 + 4], 0
	GATE	EXC_SS, STUB(EXC_SS)
	GATE	EXC_UD, STUB(EXC_UD)
	ret
.user:
	ud2

bad_gates:
	; Not present: #NP with the gate as error code.
	GATE	V, STUB(V), 0x0e
	FAULT	EXC_NP, V * 8 + 2, int V
	CATCH	.external		; for an event that the program did not ask for, with EXT
	GATE	EXC_UD, STUB(EXC_UD), 0x0e
.ud:	ud2
.external:
	GATE	EXC_UD, STUB(EXC_UD)
%ifndef ON_TCG
	CAUGHT	EXC_NP, EXC_UD * 8 + 3, .ud
%endif
	; Types that are no gates of this mode.
	GATE	V, STUB(V), 0x8c
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x85
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x86
	FAULT	EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x9e
	FAULT	EXC_GP, V * 8 + 2, int V
	; The code segment.
	GATE	V, STUB(V), 0x8e, 0
	FAULT	EXC_GP, 0, int V
	GATE	V, STUB(V), 0x8e, 0x1000
	FAULT	EXC_GP, 0x1000, int V
	GATE	V, STUB(V), 0x8e, SEL_DATA
	FAULT	EXC_GP, SEL_DATA, int V
	GATE	V, STUB(V), 0x8e, SEL_CODE32
	FAULT	EXC_GP, SEL_CODE32, int V
	GATE	V, STUB(V), 0x8e, SEL_USER_CODE64
	FAULT	EXC_GP, SEL_USER_CODE64 & ~3, int V
	SET_DESCRIPTOR SEL_FREE, 0, 0, 0x201b
	GATE	V, STUB(V), 0x8e, SEL_FREE
	FAULT	EXC_NP, SEL_FREE, int V
	SET_DESCRIPTOR SEL_FREE, 0, 0, 0x609b	; L and D
	FAULT	EXC_GP, SEL_FREE, int V
	SET_DESCRIPTOR SEL_FREE, 0, 0, 0x209b
	GATE	V, STUB(V), 0x8e, SEL_FREE | 3	; the RPL does not matter
	TRAP	V, int V
	; A target that is not canonical.
	GATE	V, STUB(V)
	mov	dword [idt + V * 16 + 8], 0x8000
	FAULT	EXC_GP, 0, int V
	mov	dword [idt + V * 16 + 8], 0
	; Beyond the IDT's limit: every byte of the gate counts.
	mov	word [idtr], V * 16 + 14
	lidt	[idtr]
	FAULT	EXC_GP, V * 8 + 2, int V
	FAULT	EXC_GP, 0xff * 8 + 2, int 0xff
	inc	word [idtr]
	lidt	[idtr]
	TRAP	V, int V
	mov	word [idtr], 256 * 16 - 1
	lidt	[idtr]
	ret

; INT n from CPL 3 needs DPL 3; exceptions do not.
software:
	GATE	V, STUB(V), 0x8e
	USER_FAULT EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0xae
	USER_FAULT EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x6e		; privilege comes before presence
	USER_FAULT EXC_NP, V * 8 + 2, int V
	GATE	V, STUB(V), 0x0e
	USER_FAULT EXC_GP, V * 8 + 2, int V
	GATE	V, STUB(V), 0xee
	USER	.int_v
	CAUGHT	V, 0, .int_v + 2
	GATE	V, STUB(V), 0xee, SEL_USER_CODE64 ; to the same level: the stack stays
	mov	rax, 0x1122334455667788
	GATE	V, .user_handler, 0xee, SEL_USER_CODE64
	USER	.int_v
	CAUGHT	EXC_UD, 0, .user_handler
	CHECK	[caught_xsp], user_stack_top - 40
	CHECK	[user_stack_top - 8], SEL_USER_DATA
	CHECK	[user_stack_top - 16], user_stack_top
	CHECK	[user_stack_top - 32], SEL_USER_CODE64
	CHECK	[user_stack_top - 40], .int_v + 2
	; Conforming code runs at CPL 3 too.
	SET_DESCRIPTOR SEL_FREE, 0, 0, 0x209f
	GATE	V, .user_handler, 0xee, SEL_FREE
	USER	.int_v
	CAUGHT	EXC_UD, 0, .user_handler
	CHECK	[caught_cs], SEL_FREE | 3
	; INT3 and INTO are checked, INT1 is not.
	USER_FAULT EXC_GP, EXC_BP * 8 + 2, int3
	USER_FAULT EXC_GP, EXC_DB * 8 + 2, {db 0xcd, 1}
	USER	.int1
	CAUGHT	EXC_DB, 0, .int1 + 1
	USER_FAULT EXC_UD, 0, ud2
	USER32	.into32
	CAUGHT	EXC_GP, EXC_OF * 8 + 2, .into32_at
	GATE	EXC_OF, STUB(EXC_OF), 0xee
	USER32	.into32
	CAUGHT	EXC_OF, 0, .into32_at + 1
	CHECK	[caught_cs], SEL_USER_CODE32
	GATE	EXC_OF, STUB(EXC_OF)
	ret
.int_v:
	int	V
	ud2
.user_handler:
	ud2
.int1:
	db	0xf1
	ud2
bits 32
.into32:
	mov	al, 0x7f
	inc	al
.into32_at:
	into
	ud2
bits 64

section .data
seen_flags: dd 0
pushed_flags: dd 0
