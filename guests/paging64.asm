; 4-level paging: translation by 4 KiB, 2 MiB and 1 GiB pages, permissions, accessed and dirty bits, reserved bits,
; exact error codes and CR2 (SDM 3A 4.5 to 4.8).
%define GUEST "paging64"
%define GUEST_BITS 64
%include "guest.inc"

; Tables of our own under the second entry of the PML4. Page n is at AREA + n * 4096.
AREA	equ 0x8000000000
PHYS	equ FREE_MEMORY			; page n is mapped to PHYS + n * 4096
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
t_end:

section .data
mode_flags: dq 0			; reserved physical address bits
section .text

; Sets entry rcx of the page table to rax; drops what the TLB has of it.
set_page:
	mov	[t_pt + rcx * 8], rax
	mov	rdx, AREA
	mov	r8, rcx
	shl	r8, 12
	add	rdx, r8
	invlpg	[rdx]
	ret

; PAGE n, flags: maps page n. RDI is then its address. Clobbers rax, rcx, rdx, r8.
%macro PAGE 2
	mov	ecx, %1
	mov	rax, PHYS + (%1) * 4096
	mov	rdx, %2
	or	rax, rdx
	call	set_page
	mov	rdi, rdx
%endmacro

; UPPER entry, address, flags: rewrites the entry that leads to the test pages, and flushes.
%macro UPPER 3
	mov	rax, %2
	mov	rdx, %3
	or	rax, rdx
	mov	[%1], rax
	mov	rax, cr3
	mov	cr3, rax
%endmacro

flush:
	mov	rax, cr3
	mov	cr3, rax
	ret

guest_main:
	UPPER	t_pdpt, t_pd, ALL
	UPPER	t_pd, t_pt, ALL
	UPPER	pml4 + 8, t_pdpt, ALL
	call	error_codes
	call	permissions
	call	levels
	call	accessed_dirty
	call	large
	call	reserved
	call	crossing
	call	instructions
	ret

error_codes:
	PAGE	0, 0
	FAULT_PF 0, rdi, mov al, [rdi]
	FAULT_PF PF_W, rdi, mov [rdi], al
	FAULT_PF PF_W, rdi, add [rdi], al
	FAULT_PF PF_W, rdi, xchg [rdi], al
	USER_FAULT_PF PF_U, rdi, mov al, [rdi]
	USER_FAULT_PF PF_U | PF_W, rdi, mov [rdi], al
	lea	rbx, [rdi + 0x123]
	FAULT_PF 0, rbx, mov al, [rbx]
	FAULT_PF 0, rbx, mov eax, [rbx]
	; Fetches.
	CATCH	.fetch
	jmp	rdi
.fetch:
	CAUGHT	EXC_PF, PF_I
	CHECK	[caught_cr2], rdi
	CHECK	[caught_ip], rdi
	CATCH	.fetch_user
	ENTER_AT SEL_USER_CODE64, rdi, SEL_USER_DATA, user_stack_top
.fetch_user:
	CAUGHT	EXC_PF, PF_I | PF_U
	CHECK	[caught_ip], rdi
	; Whatever the other bits say, P = 0 is not present: nothing reserved, nothing accessed.
	mov	rax, ~1
	mov	ecx, 0
	call	set_page
	FAULT_PF 0, rdi, mov al, [rdi]
	CHECK	[t_pt], ~1
	; CR2 is only written by page faults.
	mov	rax, 0x123456789000
	mov	cr2, rax
	FAULT	EXC_UD, 0, ud2
	CHECK	[caught_cr2], rax
	ret

permissions:
	; Read-only: the kernel may write while CR0.WP is clear.
	PAGE	1, PTE_P | PTE_U
	WORKS	mov al, [rdi]
	FAULT_PF PF_P | PF_W, rdi, mov [rdi], al
	USER_WORKS mov al, [rdi]
	USER_FAULT_PF PF_P | PF_W | PF_U, rdi, mov [rdi], al
	USER_FAULT_PF PF_P | PF_W | PF_U, rdi, lock cmpxchg [rdi], al ; writes even when it does not match
	CLEAR_CR cr0, CR0_WP
	mov	al, 0x5a
	WORKS	mov [rdi], al
	CHECK8	[PHYS + 0x1000], 0x5a
	CHECK_BITS [t_pt + 8], PTE_D, PTE_D
	USER_FAULT_PF PF_P | PF_W | PF_U, rdi, mov [rdi], al
	SET_CR	cr0, CR0_WP
	FAULT_PF PF_P | PF_W, rdi, mov [rdi], al	; at once, without a flush
	; Supervisor pages.
	PAGE	2, PTE_P | PTE_W
	WORKS	mov [rdi], al
	USER_FAULT_PF PF_P | PF_U, rdi, mov al, [rdi]
	USER_FAULT_PF PF_P | PF_U | PF_W, rdi, mov [rdi], al
	mov	byte [PHYS + 0x2000], 0xc3
	WORKS	call rdi
	ENTER_AT SEL_USER_CODE64, rdi, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_U | PF_I
	; No execution.
	PAGE	3, ALL | PTE_NX
	mov	byte [PHYS + 0x3000], 0xc3
	WORKS	mov [rdi], al
	mov	byte [PHYS + 0x3000], 0xc3
	CATCH	.nx
	jmp	rdi
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I
	CHECK	[caught_cr2], rdi
	ENTER_AT SEL_USER_CODE64, rdi, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_U | PF_I
	; Without EFER.NXE the bit is reserved, and fetches are not told apart.
	RDMSR_	MSR_EFER
	and	eax, ~EFER_NXE
	wrmsr
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
	FAULT_PF PF_P | PF_RSVD | PF_W, rdi, mov [rdi], al
	CATCH	.no_nxe
	jmp	rdi
.no_nxe:
	CAUGHT	EXC_PF, PF_P | PF_RSVD
	RDMSR_	MSR_EFER
	or	eax, EFER_NXE
	wrmsr
	WORKS	mov al, [rdi]
	ret

; Every level counts: R/W and U/S are ANDed, NX is ORed.
levels:
%macro LEVEL 2			; entry, table
	PAGE	4, ALL
	UPPER	%1, %2, PTE_P | PTE_U
	WORKS	mov al, [rdi]
	FAULT_PF PF_P | PF_W, rdi, mov [rdi], al
	USER_FAULT_PF PF_P | PF_W | PF_U, rdi, mov [rdi], al
	UPPER	%1, %2, PTE_P | PTE_W
	WORKS	mov [rdi], al
	USER_FAULT_PF PF_P | PF_U, rdi, mov al, [rdi]
	UPPER	%1, %2, ALL | PTE_NX
	WORKS	mov [rdi], al
	CATCH	%%nx
	jmp	rdi
%%nx:	CAUGHT	EXC_PF, PF_P | PF_I
	UPPER	%1, 0, 0
	FAULT_PF 0, rdi, mov al, [rdi]
	FAULT_PF PF_W, rdi, mov [rdi], al
	UPPER	%1, %2, ALL
	WORKS	mov [rdi], al
%endmacro
	LEVEL	pml4 + 8, t_pdpt
	LEVEL	t_pdpt, t_pd
	LEVEL	t_pd, t_pt
	ret

accessed_dirty:
	UPPER	t_pd, t_pt, ALL
	UPPER	t_pdpt, t_pd, ALL
	UPPER	pml4 + 8, t_pdpt, ALL
	PAGE	5, ALL
	CHECK_BITS [t_pt + 5 * 8], PTE_A | PTE_D, 0
	CHECK_BITS [t_pd], PTE_A | PTE_D, 0
	mov	al, [rdi]
	CHECK_BITS [t_pt + 5 * 8], PTE_A | PTE_D, PTE_A
	CHECK_BITS [t_pd], PTE_A | PTE_D, PTE_A
	CHECK_BITS [t_pdpt], PTE_A | PTE_D, PTE_A
	CHECK_BITS [pml4 + 8], PTE_A | PTE_D, PTE_A
	mov	[rdi], al
	CHECK_BITS [t_pt + 5 * 8], PTE_A | PTE_D, PTE_A | PTE_D
	CHECK_BITS [t_pd], PTE_A | PTE_D, PTE_A
	; Cleared by software and flushed: set again. A write sets both at once.
	PAGE	5, ALL
	mov	[rdi], al
	CHECK_BITS [t_pt + 5 * 8], PTE_A | PTE_D, PTE_A | PTE_D
	PAGE	5, ALL
	call	.ret_at
	CHECK_BITS [t_pt + 5 * 8], PTE_A | PTE_D, PTE_A
	; A fault does not dirty.
	PAGE	5, PTE_P
	FAULT_PF PF_P | PF_W, rdi, mov [rdi], al
	CHECK_BITS [t_pt + 5 * 8], PTE_D, 0
	PAGE	5, PTE_P | PTE_W
	USER_FAULT_PF PF_P | PF_W | PF_U, rdi, mov [rdi], al
	CHECK_BITS [t_pt + 5 * 8], PTE_D, 0
	; INVLPG is no access.
	PAGE	6, ALL
	invlpg	[rdi]
	CHECK_BITS [t_pt + 6 * 8], PTE_A | PTE_D, 0
	ret
.ret_at:
	mov	byte [PHYS + 0x5000], 0xc3
	jmp	rdi

large:
	; 2 MiB.
	mov	eax, PHYS | ALL | PTE_PS
	UPPER	t_pd + 8, PHYS, ALL | PTE_PS
	mov	rdi, AREA + 0x200000
	mov	dword [PHYS + 0x12344], 0xabcd0001
	CHECK32	[rdi + 0x12344], 0xabcd0001
	CHECK_BITS [t_pd + 8], PTE_A | PTE_D, PTE_A
	mov	dword [rdi + 0x1ffffc], 0xabcd0002
	CHECK32	[PHYS + 0x1ffffc], 0xabcd0002
	CHECK_BITS [t_pd + 8], PTE_A | PTE_D, PTE_A | PTE_D
	UPPER	t_pd + 8, PHYS, PTE_P | PTE_U | PTE_PS | PTE_NX
	lea	rbx, [rdi + 0x123456]
	FAULT_PF PF_P | PF_W, rbx, mov [rbx], al
	CATCH	.nx
	jmp	rbx
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I
	CHECK	[caught_cr2], rbx
	; Reserved: bits 20:13 of a 2 MiB page's entry.
%assign b 13
%rep 8
	UPPER	t_pd + 8, PHYS, ALL | PTE_PS | (1 << b)
	FAULT_PF PF_P | PF_RSVD, rbx, mov al, [rbx]
%assign b b+1
%endrep
	; Bit 12 is PAT.
	UPPER	t_pd + 8, PHYS, ALL | PTE_PS | (1 << 12)
	WORKS	mov al, [rbx]
	; PS in the PML4.
	UPPER	pml4 + 8, t_pdpt, ALL | PTE_PS
	mov	rdi, AREA
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
	USER_FAULT_PF PF_P | PF_RSVD | PF_U, rdi, mov al, [rdi]
	UPPER	pml4 + 8, t_pdpt, ALL
	; 1 GiB, where there are such pages; else PS is reserved there.
	mov	eax, 0x80000001
	cpuid
	bt	edx, 26
	jnc	.no_1g
	UPPER	t_pdpt + 8, 0, ALL | PTE_PS
	mov	rdi, AREA + 0x40000000
	mov	dword [PHYS + 0x54320], 0xabcd0003
	CHECK32	[rdi + PHYS + 0x54320], 0xabcd0003
	CHECK_BITS [t_pdpt + 8], PTE_A | PTE_D, PTE_A
	mov	byte [rdi + PHYS], 0
	CHECK_BITS [t_pdpt + 8], PTE_A | PTE_D, PTE_A | PTE_D
%assign b 13
%rep 17
	UPPER	t_pdpt + 8, 0, ALL | PTE_PS | (1 << b)
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
%assign b b+1
%endrep
	jmp	.end
.no_1g:
	UPPER	t_pdpt + 8, 0, ALL | PTE_PS
	mov	rdi, AREA + 0x40000000
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
.end:
	UPPER	t_pdpt + 8, 0, 0
	ret

; Bits from MAXPHYADDR to 51 are reserved at every level.
reserved:
	mov	eax, 0x80000008
	cpuid
	movzx	ecx, al
	cmp	ecx, 52
	jae	.none
	mov	r12, 1
	shl	r12, cl			; the first
	mov	r13, 1 << 51		; the last
.again:
	PAGE	7, ALL
	or	[t_pt + 7 * 8], r12
	invlpg	[rdi]
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
	USER_FAULT_PF PF_P | PF_RSVD | PF_U | PF_W, rdi, mov [rdi], al
	CATCH	.fetch
	jmp	rdi
.fetch:
	CAUGHT	EXC_PF, PF_P | PF_RSVD | PF_I
	; Reserved bits go before permissions.
	PAGE	7, PTE_P
	or	[t_pt + 7 * 8], r12
	invlpg	[rdi]
	USER_FAULT_PF PF_P | PF_RSVD | PF_U | PF_W, rdi, mov [rdi], al
	PAGE	7, ALL
%macro RESERVED 2
	UPPER	%1, %2, ALL
	or	[%1], r12
	call	flush
	FAULT_PF PF_P | PF_RSVD, rdi, mov al, [rdi]
	UPPER	%1, %2, ALL
%endmacro
	RESERVED t_pd, t_pt
	RESERVED t_pdpt, t_pd
	RESERVED pml4 + 8, t_pdpt
	xchg	r12, r13
	cmp	r12, r13
	ja	.again
.none:
	; CR3: reserved bits above MAXPHYADDR.
	mov	rax, cr3
	or	rax, r12
	or	rax, r13
	cmp	r12, 0
	je	.end
	FAULT	EXC_GP, 0, mov cr3, rax
.end:
	ret

; Two pages in one access: CR2 is the first byte that cannot be reached, and nothing is written.
crossing:
	PAGE	8, ALL
	PAGE	9, 0
	lea	rbx, [rdi - 2]
	FAULT_PF 0, rdi, mov eax, [rbx]
	mov	dword [PHYS + 0x8ffc], 0x11111111
	mov	eax, 0x22222222
	FAULT_PF PF_W, rdi, mov [rbx], eax
	CHECK32	[PHYS + 0x8ffc], 0x11111111
	FAULT_PF PF_W, rdi, add [rbx], eax
	FAULT_PF 0, rdi, movups xmm0, [rbx]
	FAULT_PF PF_W, rdi, movups [rbx], xmm0
	FAULT_PF 0, rdi, fld tword [rbx]
	PAGE	9, PTE_P | PTE_U
	WORKS	mov eax, [rbx]
	FAULT_PF PF_P | PF_W, rdi, mov [rbx], eax
	CHECK32	[PHYS + 0x8ffc], 0x11111111
	; Both missing: the first one is told.
	PAGE	8, 0
	FAULT_PF 0, rbx, mov eax, [rbx]
	; Pages that are not neighbours in memory.
	mov	ecx, 8
	mov	rax, PHYS + 0x30000 + ALL
	call	set_page
	mov	ecx, 9
	mov	rax, PHYS + 0x20000 + ALL
	call	set_page
	mov	rdi, AREA + 0x9000
	mov	rax, 0x1122334455667788
	mov	[rdi - 3], rax
	CHECK32	[PHYS + 0x30ffc], 0x66778800
	CHECK32	[PHYS + 0x20000], 0x22334455
	CHECK	[rdi - 3], rax
	; An instruction across the two: the fetch of its second half faults with the second page's address.
	mov	byte [PHYS + 0x30ffe], 0xb8	; MOV EAX, imm32
	mov	byte [PHYS + 0x30fff], 1
	mov	dword [PHYS + 0x20000], 0xc3000000
	lea	rbx, [rdi - 2]
	CATCH	.never
	call	rbx
.never:
	CAUGHT	-1, 0
	CHECK	rax, 1
%ifndef ON_BOCHS			; it keeps the decoded instruction
	PAGE	9, 0
	CATCH	.fetch
	jmp	rbx
.fetch:
	CAUGHT	EXC_PF, PF_I
	CHECK	[caught_cr2], rdi
	CHECK	[caught_ip], rbx
%endif
	; One that ends right before the page does not touch it.
	mov	byte [PHYS + 0x30fff], 0xc3
	lea	rbx, [rdi - 1]
	WORKS	call rbx
	ret

; Instructions that touch memory in ways of their own.
instructions:
	PAGE	10, 0
	WORKS	lea rax, [rdi]
	WORKS	nop dword [rdi]
	WORKS	prefetcht0 [rdi]
	WORKS	invlpg [rdi]
	FAULT_PF 0, rdi, clflush [rdi]
	FAULT_PF 0, rdi, test byte [rdi], 0
	FAULT	EXC_PF, 0, lgdt [rdi]		; CR2 may be that of either part
	FAULT_PF PF_W, rdi, sgdt [rdi]
	FAULT_PF 0, rdi, fxrstor [rdi]
	FAULT_PF PF_W, rdi, fxsave [rdi]
	FAULT_PF PF_W, rdi, lock cmpxchg16b [rdi]
	FAULT_PF 0, rdi, jmp [rdi]
	mov	rbx, rsp
	FAULT_PF 0, rdi, call [rdi]
	CHECK	rsp, rbx
	FAULT_PF 0, rdi, push qword [rdi]
	CHECK	rsp, rbx
	FAULT_PF PF_W, rdi, pop qword [rdi]
	CHECK	rsp, rbx
	; A conditional move reads whatever the condition.
	xor	eax, eax
	FAULT_PF 0, rdi, cmovnz eax, [rdi]
	; Pushes onto a page that is not there: at CPL 3, as the handler needs a stack.
	lea	rax, [rdi + 0x1000]
	PAGE	11, ALL
	mov	rdi, AREA + 11 * 4096
	lea	rbx, [rdi - 8]
	ENTER_AT SEL_USER_CODE64, .push, SEL_USER_DATA, rdi
	CAUGHT	EXC_PF, PF_U | PF_W, .push
	CHECK	[caught_cr2], rbx
	CHECK	[caught_xsp], rdi
	ENTER_AT SEL_USER_CODE64, .call, SEL_USER_DATA, rdi
	CAUGHT	EXC_PF, PF_U | PF_W, .call
	CHECK	[caught_xsp], rdi
	mov	ebp, 0x77
	ENTER_AT SEL_USER_CODE64, .enter, SEL_USER_DATA, rdi
	CAUGHT	EXC_PF, PF_U | PF_W, .enter
	CHECK	[caught_xsp], rdi
	CHECK	rbp, 0x77
	mov	rbx, AREA + 10 * 4096
	ENTER_AT SEL_USER_CODE64, .ret, SEL_USER_DATA, rbx
	CAUGHT	EXC_PF, PF_U, .ret
	CHECK	[caught_xsp], rbx
	; PUSH of memory: the read faults before the write.
	lea	rax, [rdi - 4]
	ENTER_AT SEL_USER_CODE64, .push_memory, SEL_USER_DATA, rdi
	CAUGHT	EXC_PF, PF_U, .push_memory
	CHECK	[caught_cr2], rax
	ret
.push:	push	rax
	ud2
.call:	call	.push
.enter:	enter	16, 0
.ret:	ret
.push_memory:
	push	qword [rax]
	ud2
