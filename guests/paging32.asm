; 32-bit paging without and with PSE: 4 KiB and 4 MiB pages, permissions, accessed and dirty bits, error codes, CR2,
; CR3 and CR4 (SDM 3A 4.3, 4.6 to 4.8).
%define GUEST "paging32"
%define GUEST_BITS 32
%include "guest.inc"

AREA	equ 0x40000000
PHYS	equ FREE_MEMORY
%define ALL (PTE_P | PTE_W | PTE_U)
%define ENTRY (AREA >> 22)

section .bss
	alignb	4096
directory: resb	4096
identity: resb	8 * 4096		; 32 MiB
t_pt:	resb	4096
section .text

; PAGE n, flags: maps page n of the area; EDI is its address.
%macro PAGE 2
	mov	dword [t_pt + (%1) * 4], (PHYS + (%1) * 4096) | (%2)
	mov	edi, AREA + (%1) * 4096
	invlpg	[edi]
%endmacro
%macro UPPER 1
	mov	dword [directory + ENTRY * 4], %1
	mov	eax, cr3
	mov	cr3, eax
%endmacro
%macro PSE_PAGE 1
	mov	dword [directory + (ENTRY + 1) * 4], %1
	mov	edi, AREA + 0x400000
	invlpg	[edi]
%endmacro

guest_main:
	mov	edi, identity
	mov	eax, ALL
	mov	ecx, 8 * 1024
.pages:
	mov	[edi], eax
	add	eax, 0x1000
	add	edi, 4
	loop	.pages
	mov	edi, directory
	mov	eax, identity + ALL
	mov	ecx, 8
.tables:
	mov	[edi], eax
	add	eax, 0x1000
	add	edi, 4
	loop	.tables
	mov	eax, directory
	mov	cr3, eax
	SET_CR	cr0, CR0_PG | CR0_WP
	CHECK32	[boot_magic], 0x2badb002
	mov	eax, t_pt + ALL
	mov	[directory + ENTRY * 4], eax
	call	permissions
	call	levels
	call	accessed_dirty
	call	large
	call	crossing
	call	control
	CLEAR_CR cr0, CR0_PG
	CHECK32	[boot_magic], 0x2badb002
	ret

permissions:
	PAGE	0, 0
	FAULT_PF 0, edi, mov al, [edi]
	FAULT_PF PF_W, edi, mov [edi], al
	USER_FAULT_PF PF_U, edi, mov al, [edi]
	USER_FAULT_PF PF_U | PF_W, edi, mov [edi], al
	CATCH	.fetch
	jmp	edi
.fetch:
	CAUGHT	EXC_PF, 0, AREA		; no I/D flag: there is neither NXE nor SMEP
	CHECK	[caught_cr2], edi
	PAGE	1, PTE_P | PTE_U
	WORKS	mov al, [edi]
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	USER_WORKS mov al, [edi]
	USER_FAULT_PF PF_P | PF_W | PF_U, edi, mov [edi], al
	CLEAR_CR cr0, CR0_WP
	WORKS	mov [edi], al
	USER_FAULT_PF PF_P | PF_W | PF_U, edi, mov [edi], al
	SET_CR	cr0, CR0_WP
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	PAGE	2, PTE_P | PTE_W
	WORKS	mov [edi], al
	USER_FAULT_PF PF_P | PF_U, edi, mov al, [edi]
	USER_FAULT_PF PF_P | PF_U | PF_W, edi, mov [edi], al
	ENTER_AT SEL_USER_CODE32, edi, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_U
	; The address space wraps at 4 GiB: the pages there are not mapped.
	mov	edi, 0xffffffff
	FAULT_PF 0, edi, mov al, [edi]
	ret

levels:
	PAGE	3, ALL
	UPPER	t_pt + PTE_P + PTE_U
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	USER_FAULT_PF PF_P | PF_W | PF_U, edi, mov [edi], al
	WORKS	mov al, [edi]
	UPPER	t_pt + PTE_P + PTE_W
	USER_FAULT_PF PF_P | PF_U, edi, mov al, [edi]
	WORKS	mov [edi], al
	UPPER	0
	FAULT_PF PF_W, edi, mov [edi], al
	UPPER	t_pt + ALL
	WORKS	mov [edi], al
	ret

accessed_dirty:
	PAGE	4, ALL
	UPPER	t_pt + ALL
	CHECK_BITS [t_pt + 16], PTE_A | PTE_D, 0
	mov	al, [edi]
	CHECK_BITS [t_pt + 16], PTE_A | PTE_D, PTE_A
	CHECK_BITS [directory + ENTRY * 4], PTE_A | PTE_D, PTE_A
	mov	[edi], al
	CHECK_BITS [t_pt + 16], PTE_A | PTE_D, PTE_A | PTE_D
	CHECK_BITS [directory + ENTRY * 4], PTE_A | PTE_D, PTE_A
	PAGE	4, PTE_P
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	CHECK_BITS [t_pt + 16], PTE_D, 0
	ret

large:
	; Without CR4.PSE the bit means nothing: the entry leads to a page table.
	mov	eax, t_pt + ALL + PTE_PS
	mov	[directory + (ENTRY + 1) * 4], eax
	PAGE	0, ALL
	mov	edi, AREA + 0x400000
	invlpg	[edi]
	mov	dword [PHYS + 0x10], 0x1234abcd
	CHECK	[edi + 0x10], 0x1234abcd
	SET_CR	cr4, CR4_PSE
	PSE_PAGE PHYS | ALL | PTE_PS
	CHECK	[edi + 0x10], 0x1234abcd
	mov	dword [PHYS + 0x3ffffc], 0x55667788
	CHECK	[edi + 0x3ffffc], 0x55667788
	CHECK_BITS [directory + (ENTRY + 1) * 4], PTE_A | PTE_D, PTE_A
	mov	[edi], eax
	CHECK_BITS [directory + (ENTRY + 1) * 4], PTE_A | PTE_D, PTE_A | PTE_D
	PSE_PAGE PHYS | PTE_P | PTE_PS
	lea	ebx, [edi + 0x123456]
	FAULT_PF PF_P | PF_W, ebx, mov [ebx], al
	USER_FAULT_PF PF_P | PF_U, ebx, mov al, [ebx]
	; Bit 21 of a 4 MiB page is reserved (bits 20:13 are PSE-36's).
	PSE_PAGE PHYS | ALL | PTE_PS | (1 << 21)
	FAULT_PF PF_P | PF_RSVD, ebx, mov al, [ebx]
	USER_FAULT_PF PF_P | PF_RSVD | PF_U | PF_W, ebx, mov [ebx], al
	PSE_PAGE PHYS | ALL | PTE_PS | (1 << 12) ; PAT
	WORKS	mov al, [ebx]
	; Back to tables: a change of CR4.PSE flushes.
	mov	eax, t_pt + ALL + PTE_PS
	mov	[directory + (ENTRY + 1) * 4], eax
	CLEAR_CR cr4, CR4_PSE
	CHECK	[edi + 0x10], 0x1234abcd
	mov	dword [directory + (ENTRY + 1) * 4], 0
	ret

crossing:
	PAGE	8, ALL
	PAGE	9, 0
	lea	ebx, [edi - 2]
	FAULT_PF 0, edi, mov eax, [ebx]
	mov	dword [PHYS + 0x8ffc], 0x11111111
	FAULT_PF PF_W, edi, mov [ebx], eax
	FAULT_PF PF_W, edi, xchg [ebx], eax
	CHECK32	[PHYS + 0x8ffc], 0x11111111
	; PUSHAD across two pages, at CPL 3: nothing is written.
	mov	dword [PHYS + 0xa000], 0
	PAGE	10, ALL
	lea	ebx, [edi + 16]
	lea	eax, [edi - 1]
	ENTER_AT SEL_USER_CODE32, .pusha, SEL_USER_DATA, ebx
	CAUGHT	EXC_PF, PF_W | PF_U, .pusha
	CHECK	[caught_xsp], ebx
	ret
.pusha:	pushad
	ud2

control:
	; CR0 combinations that do not exist.
	mov	eax, cr0
	and	eax, ~CR0_PE
	FAULT	EXC_GP, 0, mov cr0, eax		; PG without PE
	mov	eax, cr0
	or	eax, CR0_NW
	FAULT	EXC_GP, 0, mov cr0, eax		; NW without CD
	; CR3's low bits are PWT and PCD; the others are ignored.
	mov	eax, directory + 0xfff
	WORKS	mov cr3, eax
	mov	eax, cr3
	and	eax, 0xfffff000
	CHECK	eax, directory
	mov	eax, directory
	mov	cr3, eax
	mov	eax, cr4
	or	eax, 1 << 31
	FAULT	EXC_GP, 0, mov cr4, eax
	FAULT	EXC_UD, 0, {db 0x0f, 0x20, 0xc8} ; MOV EAX, CR1
	FAULT	EXC_UD, 0, {db 0x0f, 0x22, 0xe8} ; MOV CR5, EAX
	; A stale translation may live on until it is flushed; after the flush it must not.
	PAGE	11, ALL
	mov	dword [PHYS + 0xb000], 0xb0b
	mov	dword [PHYS + 0xc000], 0xc0c
	CHECK	[edi], 0xb0b
	mov	dword [t_pt + 11 * 4], PHYS + 0xc000 + ALL
	invlpg	[edi + 0x123]
	CHECK	[edi], 0xc0c
	mov	dword [t_pt + 11 * 4], PHYS + 0xb000 + ALL
	mov	eax, cr3
	mov	cr3, eax
	CHECK	[edi], 0xb0b
	ret
