; More targets of indirect calls than can be kept side by side: functions at the same offsets of many pages, called in
; turns, with vector registers and without, and the same again after pages were exchanged, mapped at a second address,
; written, and in another address space. What they should have added is found by arithmetic.
%define GUEST "targets"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000
STRIDE	equ 0x10000
PHYS	equ FREE_MEMORY
PAGES	equ 24
FUNCS	equ 16
ROUNDS	equ 60
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
w_pt:	resb	4096
pml4_b:	resb	4096
pdpt_b:	resb	4096
pd_b:	resb	4096
w_pt_b:	resb	4096
sums:	resd	PAGES * FUNCS		; what each function adds, by physical page
where:	resd	PAGES			; number of the physical page that is there
section .data
	align	16
ones:	dq	1, 1
other:	dq	pml4_b
section .text

guest_main:
	mov	rax, cr0			; SSE
	and	eax, ~(CR0_EM | CR0_TS)
	or	eax, CR0_MP
	mov	cr0, rax
	SET_CR	cr4, CR4_OSFXSR
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	COPY_PAGES pml4, pml4_b
	COPY_PAGES pdpt, pdpt_b
	COPY_PAGES pd, pd_b
	mov	qword [pml4_b], pdpt_b + ALL
	mov	qword [pdpt_b + 8], pd_b + ALL
	mov	qword [pd_b], w_pt_b + ALL
	call	write_all
	call	map_all
	mov	r13d, 4				; the first time not all is hot
.again:
	call	all_pages
	; Two pages change places.
	mov	eax, [where + 3 * 4]
	xchg	eax, [where + 17 * 4]
	mov	[where + 3 * 4], eax
	mov	rax, [w_pt + 3 * 16 * 8]
	xchg	rax, [w_pt + 17 * 16 * 8]
	mov	[w_pt + 3 * 16 * 8], rax
	invlpg	[AREA + 3 * STRIDE]
	invlpg	[AREA + 17 * STRIDE]
	call	all_pages
	; One page is another one's for a while.
	mov	eax, [where + 5 * 4]
	mov	[where + 20 * 4], eax
	mov	rax, [w_pt + 5 * 16 * 8]
	mov	r8, [w_pt + 20 * 16 * 8]
	mov	[w_pt + 20 * 16 * 8], rax
	invlpg	[AREA + 20 * STRIDE]
	call	all_pages
	mov	[w_pt + 20 * 16 * 8], r8
	invlpg	[AREA + 20 * STRIDE]
	shr	r8, 12
	sub	r8d, PHYS >> 12
	mov	[where + 20 * 4], r8d
	; Written by its physical address: what functions 2 and 3 of each third page add.
	xor	ecx, ecx
.write:	imul	edi, ecx, FUNCS * 4
	mov	esi, ecx
	shl	esi, 12
	add	dword [sums + rdi + 2 * 4], 1000
	add	dword [PHYS + rsi + 2 * 64 + 6], 1000
	add	dword [sums + rdi + 3 * 4], 7
	add	dword [PHYS + rsi + 3 * 64 + 6], 7
	add	ecx, 3
	cmp	ecx, PAGES
	jb	.write
	call	all_pages
	; The other space, where they lie the other way round.
	call	switch
	call	all_pages
	call	switch
	call	all_pages
	dec	r13d
	jnz	.again
	ret

; Other translations of the area, by another CR3.
switch:
	mov	rax, cr3
	xchg	rax, [other]
	mov	cr3, rax
	xor	ecx, ecx
	mov	edx, PAGES - 1
.turn:	mov	eax, [where + rcx * 4]
	xchg	eax, [where + rdx * 4]
	mov	[where + rcx * 4], eax
	inc	ecx
	dec	edx
	cmp	ecx, edx
	jb	.turn
	; The tables of both, as `where` says, for the space that is current.
	xor	ecx, ecx
	mov	rdi, w_pt
	cmp	qword [other], pml4_b
	je	.map
	mov	rdi, w_pt_b
.map:	mov	eax, [where + rcx * 4]
	shl	eax, 12
	add	eax, PHYS + ALL
	mov	edx, ecx
	shl	edx, 7
	mov	[rdi + rdx], rax
	inc	ecx
	cmp	ecx, PAGES
	jb	.map
	mov	rax, cr3
	mov	cr3, rax
	ret

map_all:
	xor	ecx, ecx
.next:	mov	[where + rcx * 4], ecx
	mov	eax, ecx
	shl	eax, 12
	add	eax, PHYS + ALL
	mov	edx, ecx
	shl	edx, 7
	mov	[w_pt + rdx], rax
	inc	ecx
	cmp	ecx, PAGES
	jb	.next
	mov	rax, cr3
	mov	cr3, rax
	ret

; Function f of page p, 64 bytes apart: lea rax, [rax+rax*2]; add rax, number; odd ones: paddq xmm1, xmm0; ret.
write_all:
	xor	ecx, ecx
.next:	mov	eax, ecx
	mov	edx, ecx
	shr	eax, 4
	shl	eax, 12
	and	edx, FUNCS - 1
	shl	edx, 6
	lea	edi, [PHYS + rax + rdx]
	mov	dword [rdi], 0x40048d48
	mov	word [rdi + 4], 0x0548
	lea	eax, [rcx + rcx * 4 + 1]
	mov	[sums + rcx * 4], eax
	mov	[rdi + 6], eax
	add	rdi, 10
	test	cl, 1
	jz	.even
	mov	dword [rdi], 0xc8d40f66		; 66 0f d4 c8
	add	rdi, 4
.even:	mov	byte [rdi], 0xc3
	inc	ecx
	cmp	ecx, PAGES * FUNCS
	jb	.next
	ret

; Calls all functions, page by page in the inner loop, and compares; XMM1 counts the calls of odd ones.
all_pages:
	mov	r12d, ROUNDS
	movdqa	xmm0, [ones]
	pxor	xmm1, xmm1
.round:
	xor	ebp, ebp			; function
	xor	eax, eax
	xor	r15d, r15d
.func:	xor	ebx, ebx			; page
.page:	mov	edi, ebx
	shl	edi, 16
	mov	esi, ebp
	shl	esi, 6
	lea	rdi, [AREA + rdi + rsi]
	call	rdi
	mov	esi, [where + rbx * 4]
	shl	esi, 4
	add	esi, ebp
	mov	esi, [sums + rsi * 4]
	lea	r15, [r15 + r15 * 2]
	add	r15, rsi
	inc	ebx
	cmp	ebx, PAGES
	jb	.page
	inc	ebp
	cmp	ebp, FUNCS
	jb	.func
	mov	r14, rax
	CHECK	r14, r15
	; Leaves the block: vector registers are brought back by who needs them.
	test	r12b, 7
	jnz	.stay
	xor	eax, eax
	cpuid
.stay:	dec	r12d
	jnz	.round
	movq	rax, xmm1
	CHECK	rax, ROUNDS * PAGES * FUNCS / 2
	punpckhqdq xmm1, xmm1
	movq	rax, xmm1
	CHECK	rax, ROUNDS * PAGES * FUNCS / 2
	ret
