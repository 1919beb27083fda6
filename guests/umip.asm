; UMIP: SGDT, SIDT, SLDT, STR and SMSW are for CPL 0 alone; and what they give without it (SDM 3A 2.5).
%define GUEST "umip"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	; Without UMIP anybody may.
	USER_WORKS sgdt [buffer]
	CHECK16	[buffer], GDT_ENTRIES * 8 - 1
	CHECK	[buffer + 2], gdt
	USER_WORKS sidt [buffer]
	CHECK16	[buffer], 256 * 16 - 1
	CHECK	[buffer + 2], idt
	mov	rax, -1
	USER_WORKS str eax
	CHECK	rax, SEL_TSS
	mov	rax, -1
	USER_WORKS str ax
	mov	rbx, 0xffffffffffff0000 | SEL_TSS
	CHECK	rax, rbx
	mov	rax, -1
	USER_WORKS sldt rax
	CHECK	rax, 0
	mov	rbx, cr0
	USER_WORKS smsw rax
	CHECK	rax, rbx
	mov	qword [buffer], -1
	USER_WORKS smsw word [buffer]
	CHECK16	[buffer + 2], 0xffff		; memory: always a word
	mov	qword [buffer], -1
	str	word [buffer]
	CHECK32	[buffer], 0xffff0000 | SEL_TSS
	; LMSW: the low four bits; PE cannot be cleared.
	mov	rbx, cr0
	mov	eax, ebx
	xor	eax, CR0_TS | CR0_PE
	lmsw	ax
	mov	rcx, cr0
	mov	eax, ebx
	xor	eax, CR0_TS
	CHECK32	ecx, eax
	mov	cr0, rbx
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	bt	ecx, 2
	jc	.have
	mov	rax, cr4
	or	eax, CR4_UMIP
	FAULT	EXC_GP, 0, mov cr4, rax
	PRINT	GUEST, ": no UMIP", 10
	ret
.have:
	SET_CR	cr4, CR4_UMIP
	USER_FAULT EXC_GP, 0, sgdt [buffer]
	USER_FAULT EXC_GP, 0, sidt [buffer]
	USER_FAULT EXC_GP, 0, sldt ax
	USER_FAULT EXC_GP, 0, str eax
	USER_FAULT EXC_GP, 0, smsw eax
	USER_FAULT EXC_GP, 0, smsw word [buffer]
	mov	rdi, 0x8000000000
	USER_FAULT EXC_GP, 0, sgdt [rdi]	; before the page fault
	WORKS	sgdt [buffer]
	WORKS	smsw eax
	; VERR and its kin stay free.
	USER_WORKS verr ax
	USER_WORKS lar eax, eax
	CLEAR_CR cr4, CR4_UMIP
	USER_WORKS str eax
	ret

section .data
	align	8
buffer:	dq 0, 0
