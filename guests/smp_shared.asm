; Code that one processor has made hot is run by another: it may be taken over as it is, but not after it was written,
; for another linear address, or with other rights (SDM 3A 4.6, 8.1.3). --stats says how often it was taken.
%define GUEST "smp_shared"
%define GUEST_BITS 64
%define GUEST_CPUS 2
%include "guest.inc"
%include "smp.inc"

AREA	equ 0x8000000000
PHYS	equ FREE_MEMORY
%define ALL (PTE_P | PTE_W | PTE_U)
ROUNDS	equ 40
CALLS	equ 200

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
section .text

guest_main:
	; Pages 0 and 1 are the same code; 2 is the supervisor's.
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	mov	qword [t_pt], PHYS + ALL
	mov	qword [t_pt + 8], PHYS + ALL
	mov	qword [t_pt + 16], PHYS + 0x1000 + PTE_P + PTE_W
	mov	edi, PHYS
	mov	esi, code
	mov	ecx, code_end - code
	rep	movsb
	call	smp_start
	xor	ebx, ebx
.round:
	; A new number, by this processor or the other one, in some rounds.
	mov	[number], ebx
	test	ebx, 1
	jz	.as_it_is
	mov	[wanted], ebx
	test	ebx, 2
	jz	.own
	ON_CPU	1, write
	call	smp_wait
	jmp	.as_it_is
.own:	call	write
.as_it_is:
	; One after the other, at the same address or at two.
	mov	rax, AREA
	mov	[where], rax
	test	ebx, 4
	jnz	.other_first
	xor	edi, edi
	call	many
	call	.move
	ON_CPU	1, many
	call	smp_wait
	jmp	.check
.other_first:
	ON_CPU	1, many
	call	smp_wait
	call	.move
	xor	edi, edi
	call	many
.check:
	mov	eax, [wanted]
	CHECK	[result], rax
	CHECK	[result + 8], rax
	CHECK32	[wrong_place], 0
	inc	ebx
	cmp	ebx, ROUNDS
	jb	.round
	call	rights
	ret

; Every third round at the other address.
.move:
	mov	eax, ebx
	xor	edx, edx
	mov	ecx, 3
	div	ecx
	test	edx, edx
	jnz	.stay
	add	qword [where], 0x1000
.stay:	ret

write:
	mov	eax, [number]
	mov	[PHYS + code.number - code], eax
	ret

; Processor EDI.
many:
	push	rbx
	push	rbp
	mov	ebp, CALLS
.next:
	mov	rsi, [where]
	xor	eax, eax
	call	rsi
	cmp	rdx, rsi
	je	.placed
	lock inc dword [wrong_place]
.placed:
	mov	[result + rdi * 8], rax
	dec	ebp
	jnz	.next
	pop	rbp
	pop	rbx
	ret

; RAX: the number; RDX: where it runs. Changes RCX and R8-R11.
code:
	lea	rdx, [rel code]
	mov	ecx, 3
	mov	r9, rsp
	mov	r10d, 0
.loop:
	push	rcx
	add	r10, [rsp]
	pop	r11
	dec	ecx
	jnz	.loop
	cmp	r10d, 6
	jne	.out
	db	0xb8			; MOV EAX, imm32
.number:
	dd	0
	cmp	r9, rsp
	je	.out
	xor	eax, eax
.out:	ret
.read:	mov	eax, [rdi]
	ret
code_end:

; The other processor makes it hot as a supervisor; as a user it may not read the page.
rights:
	mov	rax, AREA + 0x2000
	mov	dword [rax], 0x1234
	ON_CPU	1, .supervisor
	call	smp_wait
	CHECK32	[result + 8], 0x1234
	mov	rdi, AREA + 0x2000
	mov	rsi, AREA + code.read - code
	ENTER_AT SEL_USER_CODE64, rsi, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_U
	CHECK	[caught_ip], rsi
	CHECK	[caught_cr2], rdi
	call	rsi
	CHECK	rax, 0x1234
	ret
.supervisor:
	push	rdi
	mov	rdi, AREA + 0x2000
	mov	rsi, AREA + code.read - code
	mov	ecx, CALLS
.next:	call	rsi
	dec	ecx
	jnz	.next
	pop	rdi
	mov	[result + rdi * 8], rax
	ret

section .data
	align	8
where:	dq 0
result:	dq 0, 0
number:	dd 0
wanted:	dd 0
wrong_place: dd 0
