; Floating user code with data at fixed distances from it (RIP-relative operands), as a library's: read, written, added to,
; across the end of a page; at several addresses, each with data pages of its own; after these were exchanged (INVLPG, and a
; load of CR3), in another address space, read-only, missing; and data in the code's own page.
%define GUEST "places"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000
STRIDE	equ 0x10000
PHYS	equ FREE_MEMORY
COPIES	equ 9
ROUNDS	equ 400
OWN	equ 12345
%define ALL (PTE_P | PTE_W | PTE_U)
%define A(n) (PHYS + 0x10000 + (n) * 0x1000)	; the first data page of copy n; COPIES: another one
%define B(n) (PHYS + 0x20000 + (n) * 0x3000)	; and the second

section .bss
	alignb	4096
w_pt:	resb	4096
w_pt_b:	resb	4096
pml4_b:	resb	4096
pdpt_b:	resb	4096
pd_b:	resb	4096
sums:	resq	COPIES
section .data
	align	8
a_of:	times COPIES dq 0		; physical addresses of the data pages
b_of:	times COPIES dq 0
where:	dq	0
section .text

guest_main:
	SET_CR	cr0, CR0_WP
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	COPY_PAGES pml4, pml4_b
	COPY_PAGES pdpt, pdpt_b
	COPY_PAGES pd, pd_b
	mov	qword [pml4_b], pdpt_b + ALL
	mov	qword [pdpt_b + 8], pd_b + ALL
	mov	qword [pd_b], w_pt_b + ALL
	mov	esi, code
	mov	edi, PHYS
	mov	ecx, code_end - code
	rep	movsb
%assign n 0
%rep COPIES + 1
	mov	qword [A(n)], 100 + n
	mov	qword [A(n) + 8], 0
	mov	dword [A(n) + 0xffc], 7 * n
%assign n n + 1
%endrep
%assign n 0
%rep COPIES
	mov	dword [B(n)], 11 + n
	mov	qword [w_pt + n * 128], PHYS + ALL
	mov	qword [w_pt_b + n * 128], PHYS + ALL
	mov	qword [a_of + n * 8], A(n)
	mov	qword [b_of + n * 8], B(n)
%assign n n + 1
%endrep
	call	map
	mov	r12d, 3
.again:
	call	run
	call	run
	; Copy 3 has another first page; and its own again, which a load of CR3 says.
	mov	qword [where], AREA + 3 * STRIDE
	USER	user_one
	CAUGHT	EXC_UD, 0, user_one.end
	mov	qword [A(COPIES) + 8], 0
	mov	qword [a_of + 3 * 8], A(COPIES)
	mov	qword [w_pt + 3 * 128 + 16], A(COPIES) + ALL
	invlpg	[AREA + 3 * STRIDE + 0x2000]
	USER	user_one
	CAUGHT	EXC_UD, 0, user_one.end
	CHECK	[A(COPIES) + 8], 1
	mov	rax, (((11 + 3) << 32) + 7 * COPIES + 100 + COPIES) * 2 + OWN
	CHECK	[sums], rax
	call	run
	mov	qword [a_of + 3 * 8], A(3)
	mov	qword [w_pt + 3 * 128 + 16], A(3) + ALL
	mov	rax, cr3
	mov	cr3, rax
	call	run
	; Another address space has them the other way round.
	call	turn
	mov	rax, cr3
	push	rax
	mov	eax, pml4_b
	mov	cr3, rax
	call	run
	call	run
	pop	rax
	mov	cr3, rax
	call	turn
	call	run
	; Missing, and read-only, at copy 5.
	mov	qword [where], AREA + 5 * STRIDE
	btr	qword [w_pt + 5 * 128 + 16], 0
	invlpg	[AREA + 5 * STRIDE + 0x2000]
	USER	user_one
	CAUGHT	EXC_PF, 4, AREA + 5 * STRIDE
	CHECK	[caught_cr2], AREA + 5 * STRIDE + 0x2000
	bts	qword [w_pt + 5 * 128 + 16], 0
	btr	qword [w_pt + 5 * 128 + 16], 1
%rep 3
	USER	user_one
	CAUGHT	EXC_PF, 7, AREA + 5 * STRIDE + code.counts - code
	CHECK	[caught_cr2], AREA + 5 * STRIDE + 0x2008
%endrep
	bts	qword [w_pt + 5 * 128 + 16], 1
	; Only the second half of what lies across.
	btr	qword [w_pt + 5 * 128 + 24], 0
	invlpg	[AREA + 5 * STRIDE + 0x3000]
	USER	user_one
	CAUGHT	EXC_PF, 4, AREA + 5 * STRIDE + code.across - code
	CHECK	[caught_cr2], AREA + 5 * STRIDE + 0x3000
	bts	qword [w_pt + 5 * 128 + 24], 0
	call	run
	dec	r12d
	jnz	.again
	ret

; The tables are as a_of and b_of say; the other address space's, for copies the other way round.
map:
	xor	ecx, ecx
.next:	mov	edx, ecx
	shl	edx, 7
	mov	edi, (COPIES - 1) * 128
	sub	edi, edx
	mov	rax, [a_of + rcx * 8]
	or	eax, ALL
	mov	[w_pt + rdx + 16], rax
	mov	[w_pt_b + rdi + 16], rax
	mov	rax, [b_of + rcx * 8]
	or	eax, ALL
	mov	[w_pt + rdx + 24], rax
	mov	[w_pt_b + rdi + 24], rax
	inc	ecx
	cmp	ecx, COPIES
	jb	.next
	mov	rax, cr3
	mov	cr3, rax
	ret

; a_of and b_of the other way round.
turn:
	xor	ecx, ecx
	mov	edx, COPIES - 1
.next:	mov	rax, [a_of + rcx * 8]
	xchg	rax, [a_of + rdx * 8]
	mov	[a_of + rcx * 8], rax
	mov	rax, [b_of + rcx * 8]
	xchg	rax, [b_of + rdx * 8]
	mov	[b_of + rcx * 8], rax
	inc	ecx
	dec	edx
	cmp	ecx, edx
	jb	.next
	ret

run:
	xor	ecx, ecx
.clear:	mov	qword [sums + rcx * 8], 0
	mov	rdx, [a_of + rcx * 8]
	mov	qword [rdx + 8], 0
	inc	ecx
	cmp	ecx, COPIES
	jb	.clear
	USER	user_all
	CAUGHT	EXC_UD, 0, user_all.end
	xor	ecx, ecx
.copy:	mov	rsi, [a_of + rcx * 8]
	mov	rdi, [b_of + rcx * 8]
	mov	eax, [rdi]
	shl	rax, 32
	mov	edx, [rsi + 0xffc]
	or	rax, rdx
	add	rax, [rsi]
	CHECK	[rdi + 0x10], rax
	CHECK	[rsi + 8], ROUNDS
	lea	rax, [rax + rax + OWN]
	imul	rax, rax, ROUNDS
	CHECK	[sums + rcx * 8], rax
	inc	ecx
	cmp	ecx, COPIES
	jb	.copy
	ret

user_one:
	call	[where]
	mov	[sums], rax
.end:	ud2

user_all:
	mov	ebp, ROUNDS
.round:	xor	ecx, ecx
.copy:	mov	ebx, ecx
	shl	ebx, 16
	add	ebx, AREA
	call	rbx
	add	[sums + rcx * 8], rax
	inc	ecx
	cmp	ecx, COPIES
	jb	.copy
	dec	ebp
	jnz	.round
.end:	ud2

; It is not run here.
code:
	mov	rax, [rel code + 0x2000]
.across: add	rax, [rel code + 0x2ffc]
.counts: inc	qword [rel code + 0x2008]
	mov	[rel code + 0x3010], rax
	add	rax, [rel code + 0x3010]
	add	rax, [rel .own]
	ret
	align	8
.own:	dq	OWN
code_end:
