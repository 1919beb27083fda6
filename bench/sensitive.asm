; The cost of sensitive instructions, at CPL 0: each in a loop timed by the TSC, the least of some rounds, without what
; the loop itself costs. Prints "BENCH name sensitive count ticks 0" for bench/run. Built as tests' guests are (guests/lib).
%define GUEST "sensitive"
%define GUEST_BITS 64
%include "guest.inc"

COUNT	equ 20000
ROUNDS	equ 7
AREA	equ 0x8000000000
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
b_pdpt:	resb	4096
b_pd:	resb	4096
b_pt:	resb	4096
b_pml4:	resb	4096
	alignb	64
b_image: resb	8192
b_best:	resq	1
b_empty: resq	1
section .text

; TIMED name, body: RAX-RDX, RSI and RDI are the body's; RBP, R14 and R15 are not.
%macro TIMED 2+
	[section .strings]
%%name:	db	%1, 0
	__?SECT?__
	mov	r15, %%loop
	mov	r13, %%name
	jmp	%%go
	align	16
%%loop:	mov	ebp, COUNT
%%turn:	%2
	dec	ebp
	jnz	%%turn
	ret
%%go:	call	timed
%endmacro

; The same of two instructions.
%macro PAIR 3
	[section .strings]
%%name:	db	%1, 0
	__?SECT?__
	mov	r15, %%loop
	mov	r13, %%name
	jmp	%%go
	align	16
%%loop:	mov	ebp, COUNT
%%turn:	%2
	%3
	dec	ebp
	jnz	%%turn
	ret
%%go:	call	timed
%endmacro

guest_main:
	mov	qword [b_empty], 0
	TIMED	"", nop
	mov	rax, [b_best]
	mov	[b_empty], rax
	call	flags_and_bases
	call	registers
	call	memory
	call	transfers
	PRINT	"@@DONE@@", 10
	ret

flags_and_bases:
	TIMED	"cli", cli
	PAIR	"sti-cli", sti, cli
	PAIR	"pushf-pop", pushfq, pop rax
	PAIR	"pushf-popf", pushfq, popfq
	TIMED	"swapgs", swapgs
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	mov	r12d, ebx
	bt	r12d, 20
	jnc	.no_smap
	PAIR	"stac-clac", stac, clac
.no_smap:
	bt	r12d, 0
	jnc	.no_bases
	SET_CR	cr4, CR4_FSGSBASE
	TIMED	"rdfsbase", rdfsbase rax
	xor	eax, eax
	TIMED	"wrfsbase", wrfsbase rax
.no_bases:
	ret

registers:
	TIMED	"mov-from-cr0", mov rax, cr0
	TIMED	"mov-from-cr3", mov rax, cr3
	TIMED	"mov-from-cr8", mov rax, cr8
	xor	eax, eax
	TIMED	"mov-to-cr8", mov cr8, rax
	xor	eax, eax
	TIMED	"mov-to-cr2", mov cr2, rax
	mov	rax, cr0
	TIMED	"mov-to-cr0", mov cr0, rax
	mov	ecx, MSR_FS_BASE
	TIMED	"rdmsr", rdmsr
	mov	ecx, MSR_KERNEL_GS_BASE
	xor	eax, eax
	xor	edx, edx
	TIMED	"wrmsr", wrmsr
	mov	ecx, MSR_TSC_DEADLINE
	mov	eax, 1
	cpuid
	bt	ecx, 24
	jnc	.no_deadline
	mov	edi, LAPIC + 0x320		; the timer's mode: TSC deadline, masked
	mov	dword [rdi], 0x50020
	mov	ecx, MSR_TSC_DEADLINE
	mov	eax, -1
	mov	edx, 0x7fffffff
	TIMED	"wrmsr-deadline", wrmsr
.no_deadline:
	TIMED	"rdtsc", rdtsc
	mov	eax, 0x80000001
	cpuid
	bt	edx, 27
	jnc	.no_rdtscp
	TIMED	"rdtscp", rdtscp
.no_rdtscp:
	xor	eax, eax
	TIMED	"cpuid", cpuid
	TIMED	"pause", pause
	LAPIC_WRITE 0xf0, 0x1ff
	mov	edi, LAPIC + 0xb0
	xor	eax, eax
	TIMED	"apic-eoi", mov [rdi], eax
	ret

memory:
	mov	rdi, b_image
	TIMED	"fxsave", fxsave64 [rdi]
	TIMED	"fxrstor", fxrstor64 [rdi]
	mov	eax, 1
	cpuid
	bt	ecx, 26
	jnc	.no_xsave
	SET_CR	cr4, CR4_OSXSAVE
	mov	rdi, b_image
	mov	eax, 3
	xor	edx, edx
	TIMED	"xsave", xsave64 [rdi]
	TIMED	"xrstor", xrstor64 [rdi]
.no_xsave:
	; A page that is used, and its translation thrown away each time.
	mov	qword [pml4 + 8], b_pdpt + ALL
	mov	qword [b_pdpt], b_pd + ALL
	mov	qword [b_pd], b_pt + ALL
	mov	qword [b_pt], FREE_MEMORY + ALL
	mov	rdi, AREA
	TIMED	"invlpg", invlpg [rdi]
	PAIR	"invlpg-load", invlpg [rdi], {mov eax, [rdi]}
	mov	rax, cr3
	TIMED	"mov-to-cr3", mov cr3, rax
	mov	eax, 1
	cpuid
	bt	ecx, 17
	jnc	.no_pcid
	mov	rsi, pml4
	mov	rdi, b_pml4
	mov	ecx, 512
	rep	movsq
	SET_CR	cr4, CR4_PCIDE
	mov	rax, pml4 + 1
	mov	cr3, rax
	mov	rcx, b_pml4 + 2
	mov	cr3, rcx
	bts	rax, 63
	bts	rcx, 63
	PAIR	"cr3-pcid-keep-x2", {mov cr3, rax}, {mov cr3, rcx}
	mov	rax, pml4
	mov	cr3, rax
.no_pcid:
	ret

transfers:
	GATE	0x70, .return
	TIMED	"int-iret", int 0x70
	GATE	EXC_UD, .skip
	TIMED	"ud2-iret", ud2
	; SYSCALL and SYSRET, from user code, which ends with INT 71h.
	RDMSR_	MSR_EFER
	or	eax, EFER_SCE
	wrmsr
	WRMSR_	MSR_STAR, 0, 0x00180008
	WRMSR_	MSR_LSTAR, .entry
	WRMSR_	MSR_SFMASK, 0x700
	GATE	0x71, .back, 0xee
	mov	r15, .users
	mov	r13, .name
	call	timed
	ret
.return: iretq
.skip:	add	qword [rsp], 2
	iretq
.entry:	o64 sysret
.users:	mov	[b_image], rsp
	push	SEL_USER_DATA
	push	user_stack_top
	push	2
	push	SEL_USER_CODE64
	push	.user
	iretq
.user:	mov	ebp, COUNT
.turn:	syscall
	dec	ebp
	jnz	.turn
	int	0x71
.back:	mov	rsp, [b_image]
	ret
section .strings
.name:	db	"syscall-sysret", 0
section .text

; Calls R15 some times, with RAX, RCX and RDX as they are; prints under the name R13 and keeps in b_best what the fastest took.
timed:
	mov	qword [b_best], -1
	mov	r14d, ROUNDS
	push	rax
	push	rcx
	push	rdx
.round:
	mov	rax, [rsp + 16]
	mov	rcx, [rsp + 8]
	mov	rdx, [rsp]
	push	rdx
	push	rax
	lfence
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	r10, rax
	pop	rax
	pop	rdx
	call	r15
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	sub	rax, r10
	cmp	rax, [b_best]
	jae	.slower
	mov	[b_best], rax
.slower: dec	r14d
	jnz	.round
	pop	rdx
	pop	rcx
	pop	rax
	cmp	byte [r13], 0
	je	.silent
	push	rax
	push	rsi
	PRINT	"BENCH "
	mov	rsi, r13
	call	print
	PRINT	" sensitive "
	mov	eax, COUNT
	call	print_decimal
	PRINT	" "
	mov	rax, [b_best]
	sub	rax, [b_empty]
	jae	.positive
	xor	eax, eax
.positive:
	call	print_decimal
	PRINT	" 0", 10
	pop	rsi
	pop	rax
.silent: ret
