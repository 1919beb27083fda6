; PAE paging: the PDPTEs in registers, 4 KiB and 2 MiB pages, NX, reserved bits (SDM 3A 4.4).
%define GUEST "paging_pae"
%define GUEST_BITS 32
%include "guest.inc"

AREA	equ 0x40000000			; the second PDPTE
PHYS	equ FREE_MEMORY
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
pd_low:	resb	4096
pd_area: resb	4096
pd_other: resb	4096
t_pt:	resb	4096
pdptes:	resb	32
section .text

; PAGE n, flags[, upper half]: maps page n of the area; EDI is its address.
%macro PAGE 2-3 0
	mov	dword [t_pt + (%1) * 8], (PHYS + (%1) * 4096) | (%2)
	mov	dword [t_pt + (%1) * 8 + 4], %3
	mov	edi, AREA + (%1) * 4096
	invlpg	[edi]
%endmacro
%macro LARGE 1-2 0
	mov	dword [pd_area + 8], %1
	mov	dword [pd_area + 12], %2
	mov	edi, AREA + 0x200000
	invlpg	[edi]
%endmacro
%macro RELOAD 0
	mov	eax, cr3
	mov	cr3, eax
%endmacro

guest_main:
	mov	edi, pd_low
	mov	eax, ALL | PTE_PS
	mov	ecx, 512
.pages:
	mov	[edi], eax
	mov	dword [edi + 4], 0
	add	eax, 0x200000
	add	edi, 8
	loop	.pages
	mov	dword [pdptes], pd_low + PTE_P
	mov	dword [pdptes + 8], pd_area + PTE_P
	mov	dword [pd_area], t_pt + ALL
	SET_CR	cr4, CR4_PAE
	mov	eax, pdptes
	mov	cr3, eax
	SET_CR	cr0, CR0_PG | CR0_WP
	CHECK32	[boot_magic], 0x2badb002
	call	registers
	call	permissions
	call	no_execute
	call	large
	call	reserved
	CLEAR_CR cr0, CR0_PG
	CHECK32	[boot_magic], 0x2badb002
	ret

registers:
	; PDPTEs are loaded by MOV CR3 and stay, whatever happens in memory.
	PAGE	0, ALL
	mov	dword [PHYS], 0x11112222
	CHECK	[edi], 0x11112222
	mov	dword [pdptes + 8], 0
	invlpg	[edi]
	WORKS	mov eax, [edi]
	RELOAD
	FAULT_PF 0, edi, mov eax, [edi]
	FAULT_PF PF_W, edi, mov [edi], eax
	; Reserved bits in a PDPTE: #GP at the load, which then did not happen.
	mov	dword [pdptes + 8], pd_area + PTE_P + PTE_W
	mov	eax, cr3
	FAULT	EXC_GP, 0, mov cr3, eax
	mov	dword [pdptes + 8], pd_area + PTE_P + PTE_U
	FAULT	EXC_GP, 0, mov cr3, eax
	mov	dword [pdptes + 8], pd_area + PTE_P + 0x20
	FAULT	EXC_GP, 0, mov cr3, eax
	mov	dword [pdptes + 8], pd_area + PTE_P + 0x100
	FAULT	EXC_GP, 0, mov cr3, eax
	mov	dword [pdptes + 12], 0x80000000
	mov	dword [pdptes + 8], pd_area + PTE_P
	FAULT	EXC_GP, 0, mov cr3, eax
	FAULT_PF 0, edi, mov eax, [edi]
	mov	dword [pdptes + 8], pd_area + PTE_W	; not present: all is allowed
	WORKS	mov cr3, eax
	mov	dword [pdptes + 12], 0
	mov	dword [pdptes + 8], pd_area + PTE_P + 0xe18 ; PWT, PCD, and ignored bits
	WORKS	mov cr3, eax
	CHECK	[edi], 0x11112222
	mov	dword [pdptes + 8], pd_area + PTE_P
	; A change of CR4.PGE, PSE or PAE, or of CR0.PG and caches, loads them too.
	mov	dword [pdptes + 16], pd_area + PTE_P
	SET_CR	cr4, CR4_PGE
	CHECK	[edi + 0x40000000], 0x11112222
	mov	dword [pdptes + 16], 0
	CLEAR_CR cr4, CR4_PGE
	lea	ebx, [edi + 0x40000000]
	FAULT_PF 0, ebx, mov eax, [ebx]
	; 32 bytes of alignment are enough for CR3.
	mov	eax, cr3
	CHECK	eax, pdptes
	ret

permissions:
	PAGE	1, PTE_P | PTE_U
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	USER_WORKS mov al, [edi]
	PAGE	2, PTE_P | PTE_W
	USER_FAULT_PF PF_P | PF_U, edi, mov al, [edi]
	PAGE	3, 0
	FAULT_PF 0, edi, mov al, [edi]
	mov	dword [pd_area], t_pt + PTE_P + PTE_W
	RELOAD
	PAGE	4, ALL
	USER_FAULT_PF PF_P | PF_U, edi, mov al, [edi]
	WORKS	mov [edi], al
	CHECK_BITS [t_pt + 32], PTE_A | PTE_D, PTE_A | PTE_D
	CHECK_BITS [pd_area], PTE_A | PTE_D, PTE_A
	mov	dword [pd_area], t_pt + ALL
	RELOAD
	ret

no_execute:
	; Without NXE the bit is reserved.
	PAGE	5, ALL, 0x80000000
	FAULT_PF PF_P | PF_RSVD, edi, mov al, [edi]
	CATCH	.plain
	jmp	edi
.plain:
	CAUGHT	EXC_PF, PF_P | PF_RSVD
	PAGE	6, 0
	CATCH	.absent
	jmp	edi
.absent:
	CAUGHT	EXC_PF, 0
	RDMSR_	MSR_EFER
	or	eax, EFER_NXE
	wrmsr
	PAGE	5, ALL, 0x80000000
	WORKS	mov al, [edi]
	CATCH	.nx
	jmp	edi
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I, AREA + 0x5000
	ENTER_AT SEL_USER_CODE32, edi, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_I | PF_U
	PAGE	6, 0
	CATCH	.absent_nx
	jmp	edi
.absent_nx:
	CAUGHT	EXC_PF, PF_I
	mov	dword [pd_area + 4], 0x80000000
	RELOAD
	PAGE	5, ALL
	CATCH	.upper
	jmp	edi
.upper:
	CAUGHT	EXC_PF, PF_P | PF_I
	mov	dword [pd_area + 4], 0
	RELOAD
	ret

large:
	LARGE	PHYS | ALL | PTE_PS
	mov	dword [PHYS + 0x1ffffc], 0x778899aa
	CHECK	[edi + 0x1ffffc], 0x778899aa
	CHECK_BITS [pd_area + 8], PTE_A | PTE_D, PTE_A
	mov	[edi], eax
	CHECK_BITS [pd_area + 8], PTE_A | PTE_D, PTE_A | PTE_D
	LARGE	PHYS | PTE_P | PTE_PS, 0x80000000
	FAULT_PF PF_P | PF_W, edi, mov [edi], al
	CATCH	.nx
	jmp	edi
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I
%assign b 13
%rep 8
	LARGE	PHYS | ALL | PTE_PS | (1 << b)
	FAULT_PF PF_P | PF_RSVD, edi, mov al, [edi]
%assign b b+1
%endrep
	; CR4.PSE does not matter with PAE: tested without it.
	ret

; Bits from MAXPHYADDR to 62 are reserved.
reserved:
%macro RESERVED_BIT 1
	PAGE	7, ALL, 1 << ((%1) - 32)
	FAULT_PF PF_P | PF_RSVD, edi, mov al, [edi]
	LARGE	PHYS | ALL | PTE_PS, 1 << ((%1) - 32)
	FAULT_PF PF_P | PF_RSVD, edi, mov al, [edi]
%endmacro
	RESERVED_BIT 62
	RESERVED_BIT 57
	RESERVED_BIT 52
	; A PDPTE with them: #GP.
	mov	dword [pdptes + 20], 1 << 20
	mov	dword [pdptes + 16], pd_area + PTE_P
	mov	eax, cr3
	FAULT	EXC_GP, 0, mov cr3, eax
	mov	dword [pdptes + 16], 0
	WORKS	mov cr3, eax
	ret
