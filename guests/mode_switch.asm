; Round trips between modes: 64-bit, compatibility, 32-bit protected with and without paging, real mode and back; what
; EFER, CR0 and CR4 allow on the way (SDM 3A 9.8.5).
%define GUEST "mode_switch"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	call	refused
	mov	ebx, 5
.again:
	call	round_trip
	dec	ebx
	jnz	.again
	CHECK32	[trips], 5
	CHECK32	[real_seen], 5
	; Everything is as before.
	RDMSR_	MSR_EFER
	CHECK_BITS eax, EFER_LME | EFER_LMA | EFER_NXE, EFER_LME | EFER_LMA | EFER_NXE
	FAULT	EXC_UD, 0, ud2
	USER	.user
	CAUGHT	EXC_UD, 0, .user
	ret
.user:	ud2

refused:
	; In long mode: LME, PAE and PG stay.
	RDMSR_	MSR_EFER
	and	eax, ~EFER_LME
	FAULT	EXC_GP, 0, wrmsr
	mov	rax, cr4
	and	eax, ~CR4_PAE
	FAULT	EXC_GP, 0, mov cr4, rax
	; LMA is read-only: its written value does not matter.
	RDMSR_	MSR_EFER
	and	eax, ~EFER_LMA
	WORKS	wrmsr
	RDMSR_	MSR_EFER
	CHECK_BITS eax, EFER_LMA, EFER_LMA
	; Upper halves of CR0 and CR4.
	mov	rax, cr0
	bts	rax, 32
	FAULT	EXC_GP, 0, mov cr0, rax
	mov	rax, cr4
	bts	rax, 32
	FAULT	EXC_GP, 0, mov cr4, rax
	; PG without PE.
	mov	rax, cr0
	and	eax, ~CR0_PE
	FAULT	EXC_GP, 0, mov cr0, rax
	ret

round_trip:
	push	rbx
	mov	[saved_rsp], rsp
	mov	rax, 0x1122334455667788
	mov	r12, rax
	; Data segments that 32-bit code can use.
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	jmp	far dword [to_compat]
bits 32
compat:
	; Compatibility mode: paging may now be switched off.
	mov	eax, cr0
	and	eax, ~CR0_PG
	mov	cr0, eax
	mov	ecx, MSR_EFER
	rdmsr
	test	eax, EFER_LMA
	jnz	.bad
	and	eax, ~EFER_LME
	wrmsr
	; 32-bit protected mode without paging. With 32-bit paging:
	mov	eax, cr4
	and	eax, ~CR4_PAE
	or	eax, CR4_PSE
	mov	cr4, eax
	mov	edi, directory
	mov	eax, PTE_P | PTE_W | PTE_PS
	mov	ecx, 1024
.pages:
	mov	[edi], eax
	add	eax, 0x400000
	add	edi, 4
	loop	.pages
	mov	eax, directory
	mov	cr3, eax
	mov	eax, cr0
	or	eax, CR0_PG
	mov	cr0, eax
	inc	dword [trips]
	; LME cannot be changed while paging is on, is refused: not tried here, there is no 32-bit IDT.
	mov	eax, cr0
	and	eax, ~CR0_PG
	mov	cr0, eax
	; And down to real mode.
	mov	[saved_esp32], esp
	jmp	SEL_CODE16:real_code
.bad:	mov	dword [trips], 1000
	jmp	.bad

from_real:
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	mov	esp, [saved_esp32]
	; Back: PAE, CR3, LME, PG.
	mov	eax, cr4
	and	eax, ~CR4_PSE
	or	eax, CR4_PAE
	mov	cr4, eax
	mov	eax, pml4
	mov	cr3, eax
	mov	ecx, MSR_EFER
	rdmsr
	or	eax, EFER_LME
	wrmsr
	mov	eax, cr0
	or	eax, CR0_PG
	mov	cr0, eax
	jmp	SEL_CODE:long_again
bits 64
long_again:
	mov	rsp, [saved_rsp]
	; The upper halves of registers are undefined after a trip through other modes; in fact they were not touched.
	lidt	[idtr]
	pop	rbx
	ret

section .real
bits 16
real_code:
	mov	ax, SEL_DATA16
	mov	ds, ax
	mov	ss, ax
	o32 lidt [cs:.idtr]
	mov	eax, cr0
	and	al, ~CR0_PE
	mov	cr0, eax
	jmp	0:.real
.real:	xor	ax, ax
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	sp, 0x7c00
	mov	word [0x66 * 4], .service
	mov	word [0x66 * 4 + 2], 0
	xor	bx, bx
	int	0x66
	cmp	bx, 0x55aa
	jne	.back
	o32 inc	dword [cs:real_count]
.back:
	; The count goes to the guest's own data: by way of FS with a protected mode limit would do; here it is copied later.
	mov	eax, cr0
	or	al, CR0_PE
	mov	cr0, eax
	jmp	dword SEL_CODE32:from_real_count
.service:
	mov	bx, 0x55aa
	iret
.idtr:	dw 0x3ff
	dd 0
	align	4
real_count: dd 0

section .text
bits 32
from_real_count:
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	eax, [real_count]
	mov	[real_seen], eax
	jmp	from_real
bits 64

section .bss
	alignb	4096
directory: resb 4096
section .data
	align	8
to_compat: dd compat, SEL_CODE32
saved_rsp: dq 0
saved_esp32: dd 0
trips:	dd 0
real_seen: dd 0
