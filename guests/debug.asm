; Debug exceptions: single step, RF, the shadows of MOV SS and STI, DR0-7 code, data and I/O breakpoints, general
; detect, INT1 (SDM 3B 18.2, 18.3; 3A 6.8.3).
%define GUEST "debug"
%define GUEST_BITS 64
%include "guest.inc"

BS	equ 1 << 14
BD	equ 1 << 13
DR6_FIXED equ 0xffff0ff0
DR7_FIXED equ 0x400
; DR7 fields of breakpoint n: enable (local), and condition with length.
%define L(n) (1 << (2 * (n)))
%define COND(n, rw, len) (((rw) | ((len) << 2)) << (16 + 4 * (n)))
EXECUTE equ 0
WRITE	equ 1
IO	equ 2
ACCESS	equ 3
LEN1	equ 0
LEN2	equ 1
LEN8	equ 2
LEN4	equ 3

; SET_DR n, value
%macro SET_DR 2
	mov	rax, %2
	mov	dr%1, rax
%endmacro

; STEPPED address, dr6: what the last exception must have been.
%define DEBUGGED DEBUGGED_ __?LINE?__,
%macro DEBUGGED_ 3
	CAUGHT_	%1, EXC_DB, 0, %2
	mov	rax, dr6
	CHECK_	%1, rax, DR6_FIXED | (%3)
	mov	rax, DR6_FIXED
	mov	dr6, rax
%endmacro

; BREAKS address, dr6, instruction: the instruction must end in this #DB.
%define BREAKS BREAKS_ __?LINE?__,
%macro BREAKS_ 4+
	CATCH	%%resume
	%4
%%end:	nop
%%resume:
	DEBUGGED_ %1, %2, %3
%endmacro

guest_main:
	mov	rax, DR6_FIXED
	mov	dr6, rax
	call	registers
	call	single_step
	call	shadows
	call	execute
	call	data
	call	input_output
	call	general_detect
	call	resume_flag
	call	user_level
	call	step_over_halt
	xor	eax, eax
	mov	dr7, rax
	ret

registers:
	mov	rax, dr6
	CHECK	rax, DR6_FIXED
	xor	eax, eax
	mov	dr6, rax
	mov	rax, dr6
	CHECK	rax, DR6_FIXED			; fixed bits stay set
	mov	rax, 0xffffffff
	mov	dr6, rax
	mov	rax, dr6
	CHECK_BITS eax, 0x1000, 0		; bit 12 stays clear
	mov	rax, DR6_FIXED
	mov	dr6, rax
	mov	rax, dr7
	CHECK	rax, DR7_FIXED
	xor	eax, eax
	mov	dr7, rax
	mov	rax, dr7
	CHECK	rax, DR7_FIXED
	mov	rax, 1 << 32
	FAULT	EXC_GP, 0, mov dr7, rax
	FAULT	EXC_GP, 0, mov dr6, rax
	mov	rax, 0x123456789abcdef0
	mov	dr1, rax
	mov	rbx, dr1
	CHECK	rbx, rax
	; DR4 and DR5 are DR6 and DR7, until CR4.DE.
	mov	rax, DR6_FIXED
	WORKS	{db 0x0f, 0x23, 0xe0}		; MOV DR4, RAX
	WORKS	{db 0x0f, 0x21, 0xeb}		; MOV RBX, DR5
	CHECK	rbx, DR7_FIXED
	SET_CR	cr4, CR4_DE
	FAULT	EXC_UD, 0, {db 0x0f, 0x23, 0xe0}
	FAULT	EXC_UD, 0, {db 0x0f, 0x21, 0xe8}
	CLEAR_CR cr4, CR4_DE
	FAULT	EXC_UD, 0, {db 0x44, 0x0f, 0x21, 0xc0} ; DR8
	ret

single_step:
	; The instruction after the one that sets TF is the first one stepped.
	CATCH	.one
	push	TF | 2
	popfq
	nop
.after:	nop
.one:
	DEBUGGED .after, BS
	CHECK_BITS [caught_flags], TF | RF, TF
	; A whole sequence, counted by a hook; string instructions stop after each iteration.
	mov	dword [steps], 0
	HOOK	EXC_DB, .count
	mov	rsi, buffer
	mov	rdi, buffer + 64
	mov	ecx, 5
	push	TF | 2
	popfq
	nop
	nop
	rep	movsb
	push	2
	popfq
	HOOK	EXC_DB, 0
	CHECK32	[steps], 2 + 5 + 2
	CHECK	rcx, 0
	; INT n clears TF for the handler, and the return sets it again.
	mov	dword [steps], 0
	HOOK	EXC_DB, .count
	HOOK	0x80, .nothing
	push	TF | 2
	popfq
	int	0x80
.behind_int:
	nop
.behind_int_end:
	push	2
	popfq
	HOOK	EXC_DB, 0
	HOOK	0x80, 0
	CHECK	[step_at], .behind_int_end	; IRET itself is not stepped, but the instruction after it
	CHECK32	[steps], 3
	; A fault goes first: the step comes after it has been handled.
	CATCH	.fault
	push	TF | 2
	popfq
.ud:	ud2
.fault:
	CAUGHT	EXC_UD, 0, .ud
	CHECK_BITS [caught_flags], TF, TF
	mov	rax, dr6
	CHECK	rax, DR6_FIXED
	; SYSCALL with TF not masked: the step is at the entry.
	RDMSR_	MSR_EFER
	or	eax, EFER_SCE
	wrmsr
	WRMSR_	MSR_STAR, 0, (0x18 << 16) | 0x08
	WRMSR_	MSR_LSTAR, .entry
	WRMSR_	MSR_SFMASK, TF
%ifndef ON_BOCHS			; it steps to the entry all the same
	CATCH	.syscall
	push	TF | 2
	popfq
	syscall
.syscall:
	; (With TF in SFMASK there is no step at all.)
	CAUGHT	EXC_BP, 0, .entry_end
	mov	rax, dr6
	CHECK	rax, DR6_FIXED
%endif
	; A step over a branch goes to its target.
	CATCH	.jump
	push	TF | 2
	popfq
	jmp	.target
	ud2
.target:
	nop
.jump:
	DEBUGGED .target, BS
	ret
.entry:	int3
.entry_end:
.nothing:
	ret
.count:
	cmp	dword [steps], 0
	jne	.not_first
	mov	rax, [rdi + FRAME.ip]
	mov	[step_at], rax
.not_first:
	inc	dword [steps]
	mov	rax, DR6_FIXED
	mov	dr6, rax
	ret

shadows:
	; MOV SS and POP SS hold debug traps back for one instruction.
	mov	ebx, SEL_DATA
	CATCH	.mov_ss
	push	TF | 2
	popfq
	mov	ss, ebx
	nop
.after:	nop
.mov_ss:
	DEBUGGED .after, BS
	; LSS does not.
	mov	word [pointer + 4], SEL_DATA
	mov	[pointer], esp
	; STI: no interrupt before the end of the next instruction. A self-IPI shows it.
	LAPIC_WRITE 0xf0, 0x1ff
	LAPIC_WRITE 0x300, 0x00044090	; self, vector 90h
	mov	dword [steps], 0
	HOOK	0x90, .interrupt
	sti
	nop
.there:	nop
	cli
	HOOK	0x90, 0
	CHECK32	[steps], 1
	CHECK	[step_at], .there
	; STI; CLI: never.
	LAPIC_WRITE 0x300, 0x00044090
	mov	dword [steps], 0
	HOOK	0x90, .interrupt
	sti
	cli
	nop
	CHECK32	[steps], 0
	; With IF already set, STI is no shadow: the interrupt was taken at once.
	sti
	nop
	nop
	cli
	CHECK32	[steps], 1
	; STI with a fault in its shadow is ordinary.
	CATCH	.ud
	sti
.fault:	ud2
.ud:
	CAUGHT	EXC_UD, 0, .fault
	CHECK_BITS [caught_flags], IF, IF
	; MOV SS holds interrupts back too: STI's shadow, then MOV SS's.
	LAPIC_WRITE 0x300, 0x00044090
	mov	dword [steps], 0
	sti
	mov	ss, ebx
	nop
.ss_there:
	nop
	cli
	HOOK	0x90, 0
	CHECK32	[steps], 1
	CHECK	[step_at], .ss_there
	ret
.interrupt:
	mov	rax, [rdi + FRAME.ip]
	mov	[step_at], rax
	inc	dword [steps]
	LAPIC_WRITE 0xb0, 0
	ret

execute:
	SET_DR	0, .here
	SET_DR	7, L(0) | COND(0, EXECUTE, LEN1)
	xor	ecx, ecx
	BREAKS	.here, 1, jmp .here		; a fault: not executed
	CHECK	rcx, 0
	CHECK_BITS [caught_flags], RF, 0	; setting it is the handler's business
	; With RF in the flags of IRET it runs once.
	ENTER_AT SEL_CODE, .here, SEL_DATA, user_stack_top, RF | 2
	CAUGHT	EXC_UD, 0, .here_end
	CHECK	rcx, 1
	; Disabled: nothing. Global enable works as local.
	SET_DR	7, 0
	CATCH	.disabled
	jmp	.here
.disabled:
	CAUGHT	EXC_UD, 0, .here_end
	SET_DR	7, 2
	BREAKS	.here, 1, jmp .here
	; The second breakpoint, and two at once.
	SET_DR	1, .here
	SET_DR	7, L(0) | L(1)
	BREAKS	.here, 3, jmp .here
	SET_DR	7, L(1)
	SET_DR	0, 0
	BREAKS	.here, 2, jmp .here
	; In the middle of an instruction it is none.
	SET_DR	1, .long + 1
	CATCH	.never
.long:	mov	eax, 0x12345678
.never:
	CAUGHT	-1, 0
	SET_DR	7, 0
	ret
.here:	inc	ecx
.here_end:
	ud2

data:
	SET_DR	7, 0
	SET_DR	0, buffer + 8
	SET_DR	7, L(0) | COND(0, WRITE, LEN1)
%define TRAPS TRAPS_ __?LINE?__,
%macro TRAPS_ 2+
	CATCH	%%resume
	%2
%%after:
	nop
%%resume:
	DEBUGGED_ %1, %%after, 1
%endmacro
	TRAPS	mov byte [buffer + 8], 1
	CHECK_BITS [caught_flags], RF, 0
	CHECK8	[buffer + 8], 1			; a trap: it is done
	WORKS	mov al, [buffer + 8]
	WORKS	mov byte [buffer + 7], 1
	WORKS	mov byte [buffer + 9], 1
	TRAPS	mov dword [buffer + 5], 1	; overlaps
	TRAPS	mov dword [buffer + 8], 1
	WORKS	mov dword [buffer + 9], 1
	TRAPS	inc byte [buffer + 8]
	TRAPS	movups [buffer], xmm0
	TRAPS	lock xadd [buffer + 8], eax
	; Reads and writes.
	SET_DR	7, L(0) | COND(0, ACCESS, LEN1)
	TRAPS	mov al, [buffer + 8]
	TRAPS	test byte [buffer + 8], 1
	TRAPS	movups xmm0, [buffer]
	TRAPS	mov byte [buffer + 8], 1
	WORKS	mov al, [buffer + 7]
	; Lengths, aligned down.
	SET_DR	7, L(0) | COND(0, ACCESS, LEN4)
	TRAPS	mov al, [buffer + 11]
	WORKS	mov al, [buffer + 12]
	WORKS	mov al, [buffer + 7]
	SET_DR	7, L(0) | COND(0, ACCESS, LEN8)
	TRAPS	mov al, [buffer + 15]
	WORKS	mov al, [buffer + 16]
	SET_DR	7, L(0) | COND(0, ACCESS, LEN2)
	TRAPS	mov al, [buffer + 9]
	WORKS	mov al, [buffer + 10]
	; The stack.
	SET_DR	7, 0
	lea	rbx, [rsp - 8]
	mov	dr0, rbx
	CATCH	.push
	SET_DR	7, L(0) | COND(0, WRITE, LEN8)
	push	rax
.push_after:
	nop
.push:
	SET_DR	7, 0
	DEBUGGED .push_after, 1
	; A string instruction traps after the iteration that touched it.
	SET_DR	0, buffer + 0x20
	SET_DR	7, L(0) | COND(0, WRITE, LEN1)
	mov	rdi, buffer + 0x1e
	mov	ecx, 8
	mov	al, 0x77
	CATCH	.string
.stosb:	rep stosb
.string:
	DEBUGGED .stosb, 1
	CHECK	rdi, buffer + 0x21
	CHECK	rcx, 5
	; Behind MOV SS a data breakpoint is held back.
	mov	eax, SEL_DATA
	mov	[buffer + 0x40], ax
	SET_DR	0, buffer + 0x40
	SET_DR	7, L(0) | COND(0, ACCESS, LEN2)
	CATCH	.mov_ss
	mov	ss, [buffer + 0x40]
	nop
.mov_ss_after:
	nop
.mov_ss:
	DEBUGGED .mov_ss_after, 1
	; A fault in the same instruction: nothing was accessed.
	SET_DR	7, 0
	ret

input_output:
	; I/O breakpoints need CR4.DE.
	SET_CR	cr4, CR4_DE
	SET_DR	0, 0x80
	SET_DR	7, L(0) | COND(0, IO, LEN1)
	TRAPS	out 0x80, al
	TRAPS	in al, 0x80
	WORKS	in al, 0x61
	SET_DR	7, 0
	CLEAR_CR cr4, CR4_DE
	ret

general_detect:
	SET_DR	7, 1 << 13
	CATCH	.read
.mov:	mov	rax, dr0
.read:
	CAUGHT	EXC_DB, 0, .mov		; a fault; the handler runs with GD clear
	mov	rax, dr7
	CHECK_BITS eax, 1 << 13, 0
	mov	rax, dr6
	CHECK_BITS eax, BD, BD
	mov	rax, DR6_FIXED
	mov	dr6, rax
	SET_DR	7, 1 << 13
	CATCH	.write
.mov2:	mov	dr6, rax
.write:
	CAUGHT	EXC_DB, 0, .mov2
	mov	rax, DR6_FIXED
	mov	dr6, rax
	SET_DR	7, 0
	; Not at CPL 3: that is #GP anyway.
	USER_FAULT EXC_GP, 0, mov rax, dr6
	USER_FAULT EXC_GP, 0, mov dr7, rax
	ret

; RF is for one instruction; INT1 sets no bit in DR6.
resume_flag:
	CATCH	.int1
	db	0xf1
.int1_after:
	nop
.int1:
	CAUGHT	EXC_DB, 0, .int1_after
	mov	rax, dr6
	CHECK	rax, DR6_FIXED
	; POPF cannot set RF.
	push	RF | 2
	popfq
	pushfq
	pop	rax
	CHECK_BITS eax, RF, 0
	; A fault at an instruction with a breakpoint: RF is pushed, so that the restart does not break again.
	SET_DR	0, .page
	mov	rbx, 0x8000000000
	HOOK	EXC_DB, .hook
	mov	dword [steps], 0
	SET_DR	7, L(0)
	CATCH	.faulted
.page:	mov	al, [rbx]
.faulted:
	HOOK	EXC_DB, 0
	CAUGHT	EXC_PF, 0, .page
	CHECK_BITS [caught_flags], RF, RF
	CHECK32	[steps], 1
	SET_DR	7, 0
	mov	rax, DR6_FIXED
	mov	dr6, rax
	ret
.hook:	or	dword [rdi + FRAME.flags], RF
	inc	dword [steps]
	ret

user_level:
	SET_DR	0, .user
	SET_DR	7, L(0)
	USER	.user
	DEBUGGED .user, 1
	SET_DR	7, 0
	USER	.user, 2 | TF
	DEBUGGED .user_2, BS
	CHECK	[caught_cs], SEL_USER_CODE64
	; System calls by INT from a stepped program: the handler is not stepped.
	GATE	0x81, STUB(0x81), 0xee
	USER	.int, 2 | TF
	CAUGHT	0x81, 0, .int + 2
	mov	rax, dr6
	CHECK	rax, DR6_FIXED
	ret
.user:	nop
.user_2:
	nop
	ud2
.int:	int	0x81
	ud2

; A debug exception ends HLT: a step does not sleep.
step_over_halt:
%ifndef ON_BOCHS			; it sleeps
	CATCH	.halt
	push	TF | 2
	popfq
	hlt
.behind_halt:
	nop
.halt:
	DEBUGGED .behind_halt, BS
%endif
	ret

section .data
	align	16
buffer:	times 256 db 0
steps:	dd 0
	align	8
step_at: dq 0
pointer: dq 0, 0
