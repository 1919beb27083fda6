; What must leave the TLB, and when: INVLPG, MOV CR3, CR4, global pages, PCID, INVPCID (SDM 3A 4.10). Whether
; something stays cached is a processor's choice, so only what must be fresh is checked, and what must not be flushed
; is at least still right.
%define GUEST "tlb"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x8000000000
A	equ FREE_MEMORY			; holds 0aaaah
B	equ FREE_MEMORY + 0x1000	; holds 0bbbbh
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
pml4_2:	resb	4096
t_pdpt2: resb	4096
t_pd2:	resb	4096
t_pt2:	resb	4096
	alignb	16
desc:	resb	16
section .text

; MAP address[, flags]: the page at R15, without any flush.
%macro MAP 1-2 ALL
	push	rax
	mov	rax, (%1) + (%2)
	mov	[t_pt], rax
	pop	rax
%endmacro
%macro RELOAD 0
	mov	rax, cr3
	mov	cr3, rax
%endmacro

guest_main:
	mov	dword [A], 0xaaaa
	mov	dword [B], 0xbbbb
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	COPY_PAGES pml4, pml4_2
	mov	qword [pml4_2 + 8], t_pdpt2 + ALL
	mov	qword [t_pdpt2], t_pd2 + ALL
	mov	qword [t_pd2], t_pt2 + ALL
	mov	r15, AREA
	MAP	A
	RELOAD
	call	basics
	call	stores
	call	large
	call	global_pages
	call	pcid
	call	invpcid_
	ret

basics:
	; INVLPG of any address in the page; of the page only.
	CHECK32	[r15], 0xaaaa
	MAP	B
	invlpg	[r15 + 0xfff]
	CHECK32	[r15], 0xbbbb
	MAP	A
	RELOAD
	CHECK32	[r15], 0xaaaa
	; A new entry needs no flush when the old one was not present.
	mov	qword [t_pt + 8], 0
	lea	rbx, [r15 + 0x1000]
	FAULT_PF 0, rbx, mov al, [rbx]
	mov	qword [t_pt + 8], B + ALL
	CHECK32	[rbx], 0xbbbb
	; Nor after a page fault for lack of rights that has been mended.
	MAP	A, PTE_P
	invlpg	[r15]
	FAULT_PF PF_P | PF_W, r15, mov [r15], al
	MAP	A
	mov	al, 0xaa
	WORKS	mov [r15], al
	; Less rights count after the flush.
	MAP	A, PTE_P | PTE_U
	invlpg	[r15]
	FAULT_PF PF_P | PF_W, r15, mov [r15], al
	MAP	A, ALL | PTE_NX
	invlpg	[r15]
	CATCH	.nx
	jmp	r15
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I
	; Supervisor only: for the user's view too.
	MAP	A
	invlpg	[r15]
	USER_WORKS mov al, [r15]
	MAP	A, PTE_P | PTE_W
	invlpg	[r15]
	USER_FAULT_PF PF_P | PF_U, r15, mov al, [r15]
	; An upper entry: INVLPG drops the paging-structure caches too.
	MAP	A
	mov	qword [t_pt2], B + ALL
	mov	qword [t_pd], t_pt2 + ALL
	invlpg	[r15]
	CHECK32	[r15], 0xbbbb
	mov	qword [t_pd], t_pt + ALL
	RELOAD
	CHECK32	[r15], 0xaaaa
	; INVLPG of an address that is not canonical does nothing.
	mov	rax, 0x800000000000
	WORKS	invlpg [rax]
	; It is for CPL 0, and needs memory.
	USER_FAULT EXC_GP, 0, invlpg [r15]
	ret

; The store to the entry itself goes through the page it maps.
stores:
	mov	qword [t_pt + 16], t_pt + ALL
	lea	rbx, [r15 + 0x2000]
	invlpg	[rbx]
	MAP	A
	invlpg	[r15]
	CHECK32	[r15], 0xaaaa
	mov	rax, B + ALL
	mov	[rbx], rax
	invlpg	[r15]
	CHECK32	[r15], 0xbbbb
	mov	rax, A + ALL
	mov	[rbx], rax
	RELOAD
	CHECK32	[r15], 0xaaaa
	ret

large:
	; A large page, dropped by INVLPG of any of its addresses.
	mov	dword [0x1800000], 0xcccc
	mov	dword [0x1a00000], 0xdddd
	mov	qword [t_pd + 8], 0x1800000 + ALL + PTE_PS
	lea	rbx, [r15 + 0x200000]
	CHECK32	[rbx], 0xcccc
	mov	eax, [rbx + 0x100000]
	mov	qword [t_pd + 8], 0x1a00000 + ALL + PTE_PS
	invlpg	[rbx + 0x1ff000]
	CHECK32	[rbx], 0xdddd
	; From a large page to small ones.
	mov	eax, [rbx]
	mov	qword [t_pt2], B + ALL
	mov	qword [t_pd + 8], t_pt2 + ALL
	invlpg	[rbx + 0x5000]
	invlpg	[rbx]
	CHECK32	[rbx], 0xbbbb
	ret

global_pages:
	MAP	A, ALL | PTE_G
	RELOAD
	SET_CR	cr4, CR4_PGE
	CHECK32	[r15], 0xaaaa
	; INVLPG drops global pages too.
	MAP	B, ALL | PTE_G
	invlpg	[r15]
	CHECK32	[r15], 0xbbbb
	; So does any change of CR4.PGE.
	MAP	A, ALL | PTE_G
	CLEAR_CR cr4, CR4_PGE
	CHECK32	[r15], 0xaaaa
	; Without PGE the bit means nothing.
	MAP	B, ALL | PTE_G
	RELOAD
	CHECK32	[r15], 0xbbbb
	SET_CR	cr4, CR4_PGE
	CHECK32	[r15], 0xbbbb
	MAP	A, ALL | PTE_G
	CLEAR_CR cr4, CR4_PGE
	SET_CR	cr4, CR4_PGE
	CHECK32	[r15], 0xaaaa
	; A change of CR0.WP counts at once.
	MAP	A, PTE_P | PTE_G
	invlpg	[r15]
	mov	al, 0xaa
	FAULT_PF PF_P | PF_W, r15, mov [r15], al
	CLEAR_CR cr0, CR0_WP
	mov	al, 0xaa
	WORKS	mov [r15], al
	SET_CR	cr0, CR0_WP
	FAULT_PF PF_P | PF_W, r15, mov [r15], al
	MAP	A
	invlpg	[r15]
	CLEAR_CR cr4, CR4_PGE
	ret

pcid:
	mov	eax, 1
	cpuid
	bt	ecx, 17
	jc	.have
	SET_CR	cr4, 0
	or	eax, CR4_PCIDE
	FAULT	EXC_GP, 0, mov cr4, rax
	PRINT	GUEST, ": no PCID", 10
	ret
.have:
	; Enabling needs CR3's low bits to be 0.
	mov	rbx, cr3
	lea	rax, [rbx + 1]
	mov	cr3, rax
	mov	rax, cr4
	or	eax, CR4_PCIDE
	FAULT	EXC_GP, 0, mov cr4, rax
	mov	cr3, rbx
	WORKS	mov cr4, rax
	mov	rax, cr0
	btr	rax, 31
	FAULT	EXC_GP, 0, mov cr0, rax		; PG cannot go while PCIDE is on
	; Two address spaces, PCID 1 and 2.
	mov	qword [t_pt], A + ALL
	mov	qword [t_pt2], B + ALL
	mov	eax, pml4 + 1
	mov	cr3, rax
	CHECK32	[r15], 0xaaaa
	mov	eax, pml4_2 + 2
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	mov	rax, pml4 + 1
	bts	rax, 63				; without a flush
	mov	cr3, rax
	CHECK32	[r15], 0xaaaa
	mov	rax, cr3
	CHECK	rax, pml4 + 1			; bit 63 reads as 0
	mov	rax, pml4_2 + 2
	bts	rax, 63
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	; A load without bit 63 drops that PCID's.
	mov	qword [t_pt], B + ALL
	mov	eax, pml4 + 1
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	; INVLPG is for the current PCID.
	mov	qword [t_pt], A + ALL
	invlpg	[r15]
	CHECK32	[r15], 0xaaaa
	; A PCID that takes over another address space, with a flush.
	mov	eax, pml4_2 + 1
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	mov	eax, pml4 + 1
	mov	cr3, rax
	CHECK32	[r15], 0xaaaa
	; Global pages belong to all.
	SET_CR	cr4, CR4_PGE
	mov	qword [t_pt], A + ALL + PTE_G
	invlpg	[r15]
	CHECK32	[r15], 0xaaaa
	mov	qword [t_pt], A + ALL
	invlpg	[r15]
	CHECK32	[r15], 0xaaaa
	CLEAR_CR cr4, CR4_PGE
	; Clearing PCIDE flushes all; PCID is then 0.
	mov	eax, pml4
	mov	cr3, rax
	mov	qword [t_pt], B + ALL
	CLEAR_CR cr4, CR4_PCIDE
	CHECK32	[r15], 0xbbbb
	ret

invpcid_:
	mov	qword [desc], 0
	mov	[desc + 8], r15
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ebx, 10
	jc	.have
	xor	eax, eax
	FAULT	EXC_UD, 0, invpcid rax, [desc]
	PRINT	GUEST, ": no INVPCID", 10
	ret
.have:
	; All four types, without PCIDs (0 only).
	MAP	A
	xor	eax, eax
	invpcid	rax, [desc]
	CHECK32	[r15], 0xaaaa
	MAP	B
	mov	eax, 1
	invpcid	rax, [desc]
	CHECK32	[r15], 0xbbbb
	MAP	A
	mov	eax, 2
	invpcid	rax, [desc]
	CHECK32	[r15], 0xaaaa
	MAP	B
	mov	eax, 3
	invpcid	rax, [desc]
	CHECK32	[r15], 0xbbbb
	; What it refuses.
	mov	eax, 4
	FAULT	EXC_GP, 0, invpcid rax, [desc]
	mov	eax, 1
	mov	dword [desc], 5
	FAULT	EXC_GP, 0, invpcid rax, [desc]	; PCID 5 with PCIDE = 0
	xor	eax, eax
	FAULT	EXC_GP, 0, invpcid rax, [desc]
	mov	dword [desc], 0x1000
	FAULT	EXC_GP, 0, invpcid rax, [desc]	; reserved bits
	mov	eax, 3
	FAULT	EXC_GP, 0, invpcid rax, [desc]
	mov	dword [desc], 0
	xor	eax, eax
	mov	dword [desc + 12], 0x8000
	FAULT	EXC_GP, 0, invpcid rax, [desc]	; not canonical
	mov	[desc + 8], r15
	USER_FAULT EXC_GP, 0, invpcid rax, [desc]
	mov	rbx, AREA + 0x300000
	FAULT_PF 0, rbx, invpcid rax, [rbx]
	mov	eax, 1
	cpuid
	bt	ecx, 17
	jnc	.end
	; One address of another PCID; all of another PCID.
	mov	qword [t_pt], A + ALL
	mov	qword [t_pt2], A + ALL
	mov	eax, pml4
	mov	cr3, rax
	SET_CR	cr4, CR4_PCIDE
	mov	eax, pml4 + 1
	mov	cr3, rax
	CHECK32	[r15], 0xaaaa
	mov	rax, pml4_2 + 2
	mov	cr3, rax
	CHECK32	[r15], 0xaaaa
	mov	qword [t_pt], B + ALL
	mov	dword [desc], 1
	xor	eax, eax
	invpcid	rax, [desc]
	mov	rax, pml4 + 1
	bts	rax, 63
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	mov	qword [t_pt2], B + ALL
	mov	dword [desc], 2
	mov	eax, 1
	invpcid	rax, [desc]
	mov	rax, pml4_2 + 2
	bts	rax, 63
	mov	cr3, rax
	CHECK32	[r15], 0xbbbb
	mov	eax, pml4
	mov	cr3, rax
	CLEAR_CR cr4, CR4_PCIDE
.end:
	ret
