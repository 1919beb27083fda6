; SMEP and SMAP: what the kernel may do with user pages, implicit accesses, STAC and CLAC (SDM 3A 4.6).
%define GUEST "protection"
%define GUEST_BITS 64
%include "guest.inc"

USER_AREA equ 0x8000000000
PHYS	equ FREE_MEMORY
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
k_pdpt:	resb	4096
u_pdpt:	resb	4096
u_pd:	resb	4096
u_pt:	resb	4096
section .text

guest_main:
	; Everything so far becomes a supervisor page; the second entry of the PML4 has the user's.
	and	qword [pml4], ~PTE_U
	mov	qword [pml4 + 8], u_pdpt + ALL
	mov	qword [u_pdpt], u_pd + ALL
	mov	qword [u_pd], u_pt + ALL
	mov	qword [u_pt], PHYS + ALL		; code and data
	mov	qword [u_pt + 8], PHYS + 0x1000 + ALL	; stack
	mov	qword [u_pt + 16], PHYS + 0x2000 + PTE_P + PTE_W
	mov	qword [u_pt + 24], 0
	mov	rax, cr3
	mov	cr3, rax
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	mov	[features], ebx
	mov	r15, USER_AREA
	call	smep
	call	smap
	ret

smep:
	test	dword [features], 1 << 7
	jnz	.have
	mov	rax, cr4
	or	eax, CR4_SMEP
	FAULT	EXC_GP, 0, mov cr4, rax
	PRINT	GUEST, ": no SMEP", 10
	ret
.have:
	mov	byte [PHYS], 0xc3
	mov	word [PHYS + 0x10], 0x0b0f
	WORKS	call r15
	SET_CR	cr4, CR4_SMEP
	CATCH	.denied
	jmp	r15
.denied:
	CAUGHT	EXC_PF, PF_P | PF_I
	CHECK	[caught_cr2], r15
	CHECK	[caught_ip], r15
	WORKS	mov al, [r15]
	; Supervisor pages are executable, and user code runs on.
	mov	byte [PHYS + 0x2000], 0xc3
	lea	rbx, [r15 + 0x2000]
	WORKS	call rbx
	lea	rbx, [r15 + 0x10]
	lea	rcx, [r15 + 0x1ff0]
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, rcx
	CAUGHT	EXC_UD, 0
	CHECK	[caught_ip], rbx
	; The I/D flag with SMEP alone (no NXE).
	RDMSR_	MSR_EFER
	and	eax, ~EFER_NXE
	wrmsr
	CATCH	.no_nxe
	jmp	r15
.no_nxe:
	CAUGHT	EXC_PF, PF_P | PF_I
	RDMSR_	MSR_EFER
	or	eax, EFER_NXE
	wrmsr
	; One supervisor entry on the way makes a supervisor page.
	mov	qword [u_pd], u_pt + PTE_P + PTE_W
	mov	rax, cr3
	mov	cr3, rax
	WORKS	call r15
	mov	qword [u_pd], u_pt + ALL
	mov	rax, cr3
	mov	cr3, rax
	CLEAR_CR cr4, CR4_SMEP
	WORKS	call r15
	ret

smap:
	test	dword [features], 1 << 20
	jnz	.have
	FAULT	EXC_UD, 0, {db 0x0f, 0x01, 0xca}
	PRINT	GUEST, ": no SMAP", 10
	ret
.have:
	SET_CR	cr4, CR4_SMAP
	FAULT_PF PF_P, r15, mov al, [r15]
	FAULT_PF PF_P | PF_W, r15, mov [r15], al
	FAULT_PF PF_P | PF_W, r15, lock inc byte [r15]
	; A fetch is not SMAP's business.
	mov	byte [PHYS], 0xc3
	WORKS	call r15
	stac
	mov	al, [r15]
	mov	[r15 + 0x100], al
	pushfq
	pop	rax
	CHECK_BITS eax, AC, AC
	clac
	FAULT_PF PF_P, r15, mov al, [r15]
	pushfq
	pop	rax
	CHECK_BITS eax, AC, 0
	; The same by POPF; at once in both directions.
	push	AC | 2
	popfq
	mov	al, [r15]
	push	2
	popfq
	FAULT_PF PF_P, r15, mov al, [r15]
	; String instructions; the bytes before the page are done.
	stac
	mov	dword [PHYS + 0x2ff8], 0
	clac
	lea	rdi, [r15 + 0x2ffc]
	mov	qword [u_pt + 24], PHYS + 0x3000 + ALL
	invlpg	[rdi + 8]
	mov	ecx, 8
	lea	rbx, [r15 + 0x3000]
	FAULT_PF PF_P | PF_W, rbx, rep stosb
	CHECK	rdi, rbx
	CHECK	rcx, 4
	; Supervisor pages are free.
	lea	rbx, [r15 + 0x2000]
	WORKS	mov [rbx], al
	; Implicit accesses fault whatever AC says: an LDT on a user page.
	mov	rax, [gdt + SEL_DATA]
	mov	[PHYS + 0x1008], rax
	mov	dword [gdt + SEL_FREE], 0x1000 << 16 | 0x1f	; base USER_AREA + 1000h
	mov	dword [gdt + SEL_FREE + 4], 0x00008200
	mov	dword [gdt + SEL_FREE + 8], USER_AREA >> 32
	mov	dword [gdt + SEL_FREE + 12], 0
	mov	eax, SEL_FREE
	lldt	ax
	lea	rbx, [r15 + 0x1008]
	mov	eax, 0x0c
	FAULT_PF PF_P, rbx, mov es, eax
	stac
	FAULT_PF PF_P, rbx, mov es, eax
	CLEAR_CR cr4, CR4_SMAP
	mov	eax, 0x0c
	WORKS	mov es, eax
	; At CPL 3 an implicit access is the supervisor's as well.
	SET_CR	cr4, CR4_SMAP
	mov	dword [PHYS + 0x30], 0x0b0fc08e	; MOV ES, EAX; UD2
	lea	rbx, [r15 + 0x30]
	lea	rcx, [r15 + 0x1ff0]
	mov	eax, 0x0f
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, rcx
	CAUGHT	EXC_PF, PF_P
	CHECK	[caught_ip], rbx
	xor	eax, eax
	lldt	ax
	CLEAR_CR cr4, CR4_SMAP
	WORKS	mov al, [r15]
	; STAC and CLAC are for CPL 0.
	mov	dword [PHYS + 0x20], 0x00ca010f
	lea	rbx, [r15 + 0x20]
	lea	rcx, [r15 + 0x1ff0]
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, rcx
	CAUGHT	EXC_UD, 0
	CHECK	[caught_ip], rbx
	ret

section .data
features: dd 0
