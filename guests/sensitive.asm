; Sensitive instructions in hot loops, where an engine may have its own short ways: interrupt flag and shadow, what waits
; when the window opens, SWAPGS, system calls, address spaces by PCID, and the faults of each at CPL 3.
%define GUEST "sensitive"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

TURNS	equ 120
VECTOR	equ 0x61
AREA	equ 0x8000000000
A	equ FREE_MEMORY
B	equ FREE_MEMORY + 0x1000
C	equ FREE_MEMORY + 0x2000
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
s_pdpt:	resb	4096
s_pd:	resb	4096
s_pt:	resb	4096
s_pml4: resb	4096
s_pdpt2: resb	4096
s_pd2:	resb	4096
s_pt2:	resb	4096
	alignb	16
s_desc:	resb	16
s_calls: resq	1
section .text

guest_main:
	call	flags
	call	window
	call	system_calls
	call	privilege
	call	bases
	call	spaces
	call	long_loops
	ret

; ---- arithmetic flags go through, IF and AC do what they should ----
flags:
	mov	ebp, TURNS
.turn:
	xor	eax, eax
	sub	eax, 1				; CF AF SF PF, not ZF, OF
	cli
	pushfq
	pop	rbx
	CHECK_BITS ebx, 0x8d5 | 0x200, 0x095
	mov	eax, 0x7fffffff
	add	eax, 1				; OF SF AF PF
	sti
	pushfq
	cli
	pop	rbx
	CHECK_BITS ebx, 0x8d5 | 0x200, 0x894 | 0x200
	cmp	eax, eax
	sti
	jne	.bad
	cli
	jne	.bad
	; Through POPF, with and without what kernels do not touch.
	push	0x8d5 | 0x400 | 2
	popfq
	pushfq
	pop	rbx
	cld
	CHECK_BITS ebx, 0x8d5 | 0x600, 0x8d5 | 0x400
	push	2
	popfq
	pushfq
	pop	rbx
	CHECK_BITS ebx, 0x8d5 | 0x600, 0
	; On a page boundary, so that the store crosses.
	mov	rcx, rsp
	mov	rsp, A + 0x1004
	xor	edx, edx
	pushfq
	pop	rbx
	mov	rsp, rcx
	CHECK_BITS ebx, 0x8d5, 0x044
	dec	ebp
	jnz	.turn
	; STAC and CLAC: only AC.
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 20
	jnc	.done
	mov	ebp, TURNS
.ac:	cmp	ebp, 0
	stac
	pushfq
	clac
	pop	rbx
	pushfq
	pop	rdx
	CHECK_BITS ebx, 0x40000, 0x40000
	CHECK_BITS edx, 0x40000, 0
	clac
	stac
	mov	[A], rbp
	clac
	CHECK	[A], rbp
	dec	ebp
	jnz	.ac
.done:	ret
.bad:	FAILED	"flags behind STI and CLI"
	ret

; ---- the interrupt that waits, and where it comes ----
%macro WAITING 0
	cli
	mov	qword [irq_ip], 0
	SELF_IPI VECTOR
%endmacro
%define CAME CAME_ __?LINE?__,
%macro CAME_ 2
	CHECK_	%1, [irq_ip], %2
%endmacro

window:
	HOOK	VECTOR, irq_apic
	call	apic_enable
	mov	ebp, TURNS
.turn:
	; One instruction runs in STI's shadow.
	WAITING
	CHECK	[irq_ip], 0
	sti
	inc	r12
.a:	nop
	cli
	CAME	.a
	; Also where it transfers control, or goes to memory.
	WAITING
	sti
	jmp	.b
	ud2
.b:	nop
	cli
	CAME	.b
	WAITING
	mov	rax, .c
	sti
	push	rax
.d:	cli
	CAME	.d
	WAITING
	sti
	ret					; pops what was pushed
	ud2
.c:	nop
	cli
	CAME	.c
	; CLI in the shadow: it does not come.
	WAITING
	sti
	cli
	nop
	CHECK	[irq_ip], 0
	sti
	nop
.e:	cli
	CAME	.e
	; STI with IF on has no shadow: it is over before.
	WAITING
	sti
	sti
.f:	cli
	CAME	.f
	; POPF has none.
	WAITING
	push	0x202
	popfq
.g:	nop
	cli
	CAME	.g
	; IRET has none.
	WAITING
	mov	rax, rsp
	push	SEL_DATA
	push	rax
	push	0x202
	push	SEL_CODE
	push	.h
	iretq
.h:	nop
	cli
	CAME	.h
	; HLT ends with it, before the next instruction.
	WAITING
	sti
	hlt
.i:	cli
	CAME	.i
	; Lower priority than the processor's: it waits for CR8.
	mov	eax, 7
	mov	cr8, rax
	WAITING
	sti
	nop
	nop
	CHECK	[irq_ip], 0
	xor	eax, eax
	mov	cr8, rax
.j:	nop
	cli
	CAME	.j
	; SYSRET and IRET to user code: before its first instruction.
	WAITING
	USER	.user, 0x202
	CAME	.user
	dec	ebp
	jnz	.turn
	mov	eax, TURNS * 11
	CHECK32	[IRQ_COUNT(VECTOR)], eax
	HOOK	VECTOR, 0
	ret
.user:	ud2

; ---- at CPL 3 ----
privilege:
	mov	ebp, TURNS / 4
.turn:
	USER_FAULT EXC_GP, 0, cli
	USER_FAULT EXC_GP, 0, sti
	USER_FAULT EXC_GP, 0, swapgs
	USER_FAULT EXC_GP, 0, mov rax, cr0
	USER_FAULT EXC_GP, 0, mov rax, cr2
	USER_FAULT EXC_GP, 0, mov rax, cr3
	USER_FAULT EXC_GP, 0, mov cr3, rax
	USER_FAULT EXC_GP, 0, mov cr8, rax
	USER_FAULT EXC_GP, 0, invlpg [rsp]
	USER_FAULT EXC_GP, 0, wrmsr
	USER_FAULT EXC_GP, 0, rdmsr
	USER_FAULT EXC_GP, 0, hlt
	USER_FAULT EXC_GP, 0, o64 sysret
	dec	ebp
	jnz	.turn
	; With IOPL 3 the interrupt flag is the user's; POPF changes it only then, and IOPL never.
	mov	ebp, TURNS
.iopl:	USER	.allowed, 0x3002
	CHECK_BITS ebx, 0x3200, 0x3200
	CHECK_BITS ecx, 0x3200, 0x3000
	USER	.refused, 0x0002
	CHECK_BITS ebx, 0x3200, 0
	dec	ebp
	jnz	.iopl
	ret
.allowed:
	sti
	pushfq
	cli
	pop	rbx
	pushfq
	pop	rcx
	push	0x202
	popfq
	ud2
.refused:
	push	0x3202
	popfq
	pushfq
	pop	rbx
	ud2

; ---- SWAPGS, RDGSBASE ----
bases:
	WRMSR_	MSR_GS_BASE, 0x1111000
	WRMSR_	MSR_KERNEL_GS_BASE, 0x2222000
	mov	dword [0x1111010], 0x11
	mov	dword [0x2222010], 0x22
	mov	ebp, TURNS
.turn:	CHECK32	[gs:0x10], 0x11
	swapgs
	CHECK32	[gs:0x10], 0x22
	RDMSR_	MSR_KERNEL_GS_BASE
	CHECK32	eax, 0x1111000
	swapgs
	RDMSR_	MSR_GS_BASE
	CHECK32	eax, 0x1111000
	dec	ebp
	jnz	.turn
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 0
	jnc	.done
	mov	ebp, TURNS / 4
.base:	CLEAR_CR cr4, CR4_FSGSBASE
	FAULT	EXC_UD, 0, rdgsbase rax
	SET_CR	cr4, CR4_FSGSBASE
	mov	r9, -1
	cmp	ebp, 0
	rdgsbase r9
	CHECK	r9, 0x1111000
	rdgsbase r10d
	CHECK	r10, 0x1111000
	mov	rax, 0x7fff00001000
	wrfsbase rax
	rdfsbase rcx
	CHECK	rcx, rax
	rdfsbase ecx
	CHECK	rcx, 0x1000
	dec	ebp
	jnz	.base
	CLEAR_CR cr4, CR4_FSGSBASE
.done:	ret

; ---- SYSCALL and SYSRET ----
system_calls:
	RDMSR_	MSR_EFER
	or	eax, EFER_SCE
	wrmsr
	WRMSR_	MSR_STAR, 0, 0x00180008
	WRMSR_	MSR_LSTAR, .entry
	WRMSR_	MSR_SFMASK, 0x600
	mov	qword [s_calls], 0
	mov	r12d, 1000
	USER	.user, 0x2
	CHECK	[s_calls], 1000
	CHECK	r12, 0
	CHECK	r13, 1000
	CHECK	r14, 0
	CHECK	r15, user_stack_top
	ret
.user:	xor	r13d, r13d
	xor	r14d, r14d
.again:	cmp	r12, 1				; ZF in the last turn alone
	pushfq
	pop	rbx
	syscall
.behind: pushfq
	pop	rdx
	cmp	rdx, rbx
	setne	al
	movzx	eax, al
	or	r14, rax			; RFLAGS came back
	cmp	rcx, .behind
	setne	al
	or	r14, rax
	inc	r13
	dec	r12
	jnz	.again
	mov	r15, rsp
	ud2
.entry:	pushfq					; on the user's stack
	pop	rax
	test	eax, 0x600
	setne	al
	movzx	eax, al
	or	r14, rax
	mov	eax, cs
	and	eax, 3
	or	r14, rax
	inc	qword [s_calls]
	o64 sysret

; ---- each many times without a way out: nothing may pile up in the monitor ----
%macro MANY 1+
	mov	ebp, 400000
%%turn:	%1
	dec	ebp
	jnz	%%turn
	CHECK32	ebp, 0
%endmacro

long_loops:
	SET_CR	cr4, CR4_OSFXSR
	xor	eax, eax
	MANY	cpuid
	mov	rdi, A
	MANY	sgdt [rdi]
	MANY	fxsave64 [rdi]
	lea	rdi, [A + 0xffc]		; across pages
	MANY	movups [rdi], xmm0
	MANY	lock cmpxchg [rdi], rax
	ret

; ---- address spaces by PCID: data and code at the same addresses, in turns ----
spaces:
	mov	eax, 1
	cpuid
	bt	ecx, 17
	jc	.have
	ret
.have:	mov	dword [A], 0xaaaa
	mov	dword [B], 0xbbbb
	mov	dword [C], 0xcccc
	; mov eax, 1 (2, 3); ret
	mov	byte [A + 0x800], 0xb8
	mov	dword [A + 0x801], 1
	mov	byte [A + 0x805], 0xc3
	mov	byte [B + 0x800], 0xb8
	mov	dword [B + 0x801], 2
	mov	byte [B + 0x805], 0xc3
	mov	byte [C + 0x800], 0xb8
	mov	dword [C + 0x801], 3
	mov	byte [C + 0x805], 0xc3
	; The same, ended by an exception, for user code.
	mov	dword [A + 0x900], 0x0b0f01b0	; mov al, 1; ud2
	mov	dword [B + 0x900], 0x0b0f02b0
	mov	dword [C + 0x900], 0x0b0f03b0
	mov	word [A + 0xa00], 0xe3ff	; jmp rbx
	mov	word [B + 0xa00], 0xe3ff
	mov	word [C + 0xa00], 0xe3ff
	mov	qword [pml4 + 8], s_pdpt + ALL
	mov	qword [s_pdpt], s_pd + ALL
	mov	qword [s_pd], s_pt + ALL
	mov	qword [s_pt], A + ALL
	COPY_PAGES pml4, s_pml4
	mov	qword [s_pml4 + 8], s_pdpt2 + ALL
	mov	qword [s_pdpt2], s_pd2 + ALL
	mov	qword [s_pd2], s_pt2 + ALL
	mov	qword [s_pt2], B + ALL
	mov	rax, pml4
	mov	cr3, rax
	SET_CR	cr4, CR4_PCIDE
	mov	r15, AREA
	mov	r12, pml4 + 1
	mov	r13, s_pml4 + 2
	mov	r14, r12
	bts	r14, 63
	mov	cr3, r12
	mov	cr3, r13
	mov	ebp, TURNS
.turn:	mov	cr3, r14			; PCID 1, kept
	CHECK32	[r15], 0xaaaa
	lea	rax, [r15 + 0x800]
	call	rax
	CHECK32	eax, 1
	lea	rax, [r15 + 0x900]
	USER	rax
	CHECK8	al, 1
	mov	rax, r13
	bts	rax, 63
	mov	cr3, rax			; PCID 2, kept
	CHECK32	[r15], 0xbbbb
	lea	rax, [r15 + 0x800]
	call	rax
	CHECK32	eax, 2
	lea	rax, [r15 + 0x900]
	USER	rax
	CHECK8	al, 2
	dec	ebp
	jnz	.turn
	; What is kept for the other PCID goes by INVPCID, or with a load that does not keep it.
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	xor	r11d, r11d
	bt	ebx, 10
	setc	r11b
	mov	ebp, TURNS
.stale:	mov	qword [s_desc], 1
	mov	[s_desc + 8], r15
	mov	rbx, C + ALL
	xor	edi, edi			; the type of INVPCID; 4: none
.kind:	mov	rax, r13
	bts	rax, 63
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	mov	[s_pt], rbx
	test	r11d, r11d
	jz	.load
	cmp	edi, 4
	je	.load
	invpcid	rdi, [s_desc]
	mov	cr3, r14
	jmp	.fresh
.load:	mov	cr3, r12
.fresh:	mov	rax, rbx
	and	rax, ~0xfff
	CHECK32	[r15], [rax]
	mov	ecx, [rax + 0x801]
	lea	rax, [r15 + 0x800]
	call	rax
	CHECK32	eax, ecx
	lea	rax, [r15 + 0x900]
	USER	rax
	CHECK8	al, ecx
	xor	rbx, A ^ C
	inc	edi
	cmp	edi, 4
	jbe	.kind
	; INVLPG is for the current one, code included.
	mov	qword [s_pt], A + ALL
	invlpg	[r15]
	CHECK32	[r15], 0xaaaa
	lea	rax, [r15 + 0x800]
	call	rax
	CHECK32	eax, 1
	dec	ebp
	jnz	.stale
	; Targets of user code's jumps that were put aside: their code is written meanwhile; and later they are mapped otherwise.
	mov	ebp, TURNS
.aside:	lea	rbx, [r15 + 0x900]
	mov	rax, r13
	bts	rax, 63
	mov	cr3, rax
	lea	rax, [r15 + 0xa00]
	USER	rax
	CHECK8	al, 2
	test	ebp, 7
	jnz	.kept
	mov	[A + 0x901], bpl
.kept:	mov	cr3, r14
	lea	rax, [r15 + 0xa00]
	USER	rax
	mov	ecx, ebp
	add	ecx, 7
	and	ecx, ~7
	cmp	ecx, TURNS
	jb	.byte
	mov	ecx, TURNS
.byte:	CHECK8	al, ecx
	test	ebp, 15
	jnz	.stays
	mov	qword [s_pt], C + ALL
	invlpg	[r15]
	lea	rax, [r15 + 0xa00]
	USER	rax
	CHECK8	al, 3
	mov	qword [s_pt], A + ALL
	invlpg	[r15]
.stays:	dec	ebp
	jnz	.aside
	; More PCIDs than anybody keeps.
	mov	ebp, TURNS
.many:	mov	eax, ebp
	and	eax, 31
	lea	rcx, [rax + pml4 + 16]
	lea	rdx, [rax + s_pml4 + 64]
	mov	cr3, rcx
	CHECK32	[r15], 0xaaaa
	mov	cr3, rdx
	CHECK32	[r15], 0xbbbb
	bts	rcx, 63
	mov	cr3, rcx
	CHECK32	[r15], 0xaaaa
	bts	rdx, 63
	mov	cr3, rdx
	CHECK32	[r15], 0xbbbb
	dec	ebp
	jnz	.many
	mov	rax, pml4
	mov	cr3, rax
	CLEAR_CR cr4, CR4_PCIDE
	ret

