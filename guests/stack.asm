; Frames on a stack whose pages lie in no order in physical memory: across the ends of pages, at its top and bottom, next to
; pages that are missing or read-only, after pages were exchanged, in another address space, and at linear address 0. Each
; frame is written and read through RSP, and looked at through physical addresses.
%define GUEST "stack"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000 + 0x1fc000	; up to the end of a page table and into the next one
PHYS	equ FREE_MEMORY
PAGES	equ 8
END	equ AREA + PAGES * 4096
ROUNDS	equ 30000
LOCALS	equ 72
DEPTH	equ LOCALS + 5 * 8
ENOUGH	equ 600				; for a frame to be hot, and its check to have failed often
%define ALL (PTE_P | PTE_W | PTE_U)
%define WHERE(n) (PHYS + ((((n) * 3) + 2) & (PAGES - 1)) * 4096)

section .bss
	alignb	4096
w_pt:	resb	4096 * 2		; for 4 MiB
low_pt:	resb	4096			; for the lowest 2 MiB
pml4_b:	resb	4096
pdpt_b:	resb	4096
pd_b:	resb	4096
w_pt_b:	resb	4096 * 2
section .data
	align	8
where:
%assign i 0
%rep PAGES
	dq	WHERE(i)
%assign i i + 1
%endrep
PTE	equ (AREA >> 12) & 511		; of the area's first page, in w_pt
base:	dq	AREA
a:	dq	6364136223846793005
x:	dq	1
other:	dq	pml4_b
saved:	dq	0
pf_cr2:	dq	0
pf_rsp:	dq	0
pf_error: dq	0
wrong:	dq	0
section .text

guest_main:
	; Returns to addresses that are not canonical, 1 << 63 among them, with nothing on a stack of returns.
	mov	ecx, 40
.far:	mov	rax, cr3
	mov	cr3, rax
	mov	eax, 1
	shl	rax, 63
	push	rax
	FAULT	EXC_GP, 0, ret
	pop	rax
	dec	ecx
	jnz	.far
	GATE	14, page_fault, 0x8e, SEL_CODE, 2
	SET_CR	cr0, CR0_WP
	mov	rdi, pd + (0x40000000 >> 21) * 8
	mov	qword [rdi], w_pt + ALL
	mov	qword [rdi + 8], w_pt + 4096 + ALL
	COPY_PAGES pml4, pml4_b
	COPY_PAGES pdpt, pdpt_b
	mov	qword [pml4_b], pdpt_b + ALL
	mov	qword [pdpt_b + 8], pd_b + ALL
	mov	qword [pd_b], w_pt_b + ALL
	mov	qword [pd_b + 8], w_pt_b + 4096 + ALL
	call	map_all
	mov	ebp, 2
.again:
	push	rbp
	call	over_ends
	call	top
	call	bottom
	call	read_only
	call	exchanged
	call	other_space
	call	at_zero
	pop	rbp
	dec	ebp
	jnz	.again
	ret

map_all:
	xor	ecx, ecx
.next:	mov	rax, [where + rcx * 8]
	or	eax, ALL
	mov	[w_pt + (PTE + rcx) * 8], rax
	mov	edx, PAGES - 1			; the other way round
	sub	edx, ecx
	mov	[w_pt_b + (PTE + rdx) * 8], rax
	inc	ecx
	cmp	ecx, PAGES
	jb	.next
	mov	rax, cr3
	mov	cr3, rax
	ret

; Not where the stack may be.
page_fault:
	mov	rbx, cr2
	mov	[pf_cr2], rbx
	pop	qword [pf_error]
	mov	rbx, [rsp + 24]
	mov	[pf_rsp], rbx
	mov	rsp, [saved]
	mov	eax, -1
	ret

; A frame below RSI, with RDI in it: RAX twice RDI, RCX RDI, RDX RSI and the others as they were; or RAX ffffffffh, and it
; faulted. Just before, the stack is below RDX.
frame:
	mov	[saved], rsp
	mov	rsp, rdx
	push	rsi
	pop	rsp
	push	rdi
	push	rbx
	push	rbp
	push	r12
	push	r13
	sub	rsp, LOCALS
	mov	[rsp + 8], rdi
	mov	[rsp + LOCALS - 8], rdi
	xor	ebx, ebx
	xor	ebp, ebp
	xor	r12d, r12d
	xor	r13d, r13d
	mov	rax, [rsp + 8]
	add	rax, [rsp + LOCALS + 32]
	xor	rbx, [rsp + LOCALS - 8]
	add	rsp, LOCALS
	pop	r13
	pop	r12
	pop	rbp
	pop	rbx
	pop	rcx
	mov	rdx, rsp
	mov	rsp, [saved]
	ret

; RDX becomes the physical address of what lies at RDX.
physical:
	sub	rdx, [base]
	mov	rcx, rdx
	shr	rcx, 12
	and	edx, 4095
	add	rdx, [where + rcx * 8]
	ret

; frame, and all that it should have left; counts in `wrong`.
good_frame:
	mov	rbx, rdi
	ror	rbx, 7
	lea	rbp, [rdi + 5]
	mov	r12, rdi
	not	r12
	lea	r13, [rdi * 8]
	lea	rdx, [rsi - 16]
	and	rdx, -4096
	add	rdx, 2048
	call	frame
	lea	r8, [rdi + rdi]
	sub	rax, r8
	sub	rcx, rdi
	sub	rdx, rsi
	or	rax, rcx
	or	rax, rdx
	mov	r8, rdi
	ror	r8, 7
	sub	r8, rbx
	or	rax, r8
	lea	r8, [rdi + 5]
	sub	r8, rbp
	or	rax, r8
	lea	r8, [rdi * 8]
	sub	r8, r13
	or	rax, r8
	mov	r8, rdi
	not	r8
	sub	r8, r12
	or	rax, r8
	lea	rdx, [rsi - 8]
	call	physical
	mov	r8, [rdx]
	sub	r8, rdi
	or	rax, r8
	lea	rdx, [rsi - 40]
	call	physical
	mov	r8, [rdx]
	sub	r8, r13
	or	rax, r8
	lea	rdx, [rsi - DEPTH + 8]
	call	physical
	mov	r8, [rdx]
	sub	r8, rdi
	or	rax, r8
	jz	.good
	inc	qword [wrong]
.good:	ret

random:
	mov	rax, [x]
	imul	rax, [a]
	add	rax, 1442695
	mov	[x], rax
	shr	rax, 30
	ret

none_wrong:
	CHECK	[wrong], 0
	mov	qword [wrong], 0
	ret

over_ends:
	mov	r14d, ROUNDS
.next:	call	random
	mov	rdi, rax
	mov	esi, eax
	and	esi, 31 * 8
	shr	rax, 8
	xor	edx, edx
	mov	ecx, PAGES - 1
	div	rcx
	shl	rdx, 12
	lea	rsi, [rsi + rdx + AREA + 4096 - 64]
	call	good_frame
	dec	r14d
	jnz	.next
	jmp	none_wrong

top:
	mov	r14d, ENOUGH
.next:	mov	edi, r14d
	mov	rsi, END
	call	good_frame
	mov	edi, r14d
	mov	rsi, END - 8
	call	good_frame
	mov	edi, r14d
	mov	rsi, AREA + DEPTH
	call	good_frame
	dec	r14d
	jnz	.next
	call	none_wrong
	; Above the top: the first PUSH goes to a page that is not there.
	mov	r14d, ENOUGH
.above:	mov	rsi, END + 8
	mov	rdx, END - 2048
	call	frame
	cmp	eax, -1
	jne	.bad
	cmp	qword [pf_cr2], END
	jne	.bad
	cmp	qword [pf_rsp], END + 8
	je	.next_above
.bad:	inc	qword [wrong]
.next_above:
	dec	r14d
	jnz	.above
	jmp	none_wrong

; Frames that begin so low that one of their PUSHes, R15 of them before, or the lowest local, is below the area.
bottom:
	xor	r15d, r15d
.depth:	mov	r14d, ENOUGH
.next:	lea	rsi, [AREA + r15 * 8]
	mov	rdi, r14
	mov	qword [pf_cr2], 0
	mov	rdx, AREA + 2048
	call	frame
	cmp	eax, -1
	jne	.bad
	cmp	qword [pf_cr2], AREA - 8
	jne	.bad
	cmp	qword [pf_error], 2
	jne	.bad
	cmp	qword [pf_rsp], AREA
	je	.good
.bad:	inc	qword [wrong]
.good:	dec	r14d
	jnz	.next
	inc	r15d
	cmp	r15d, 5
	jb	.depth
	; All PUSHes were done.
	mov	r14d, ENOUGH
.locals:
	mov	rsi, AREA + 40
	mov	rdx, AREA + 2048
	mov	rdi, r14
	call	frame
	cmp	eax, -1
	jne	.bad_local
	cmp	qword [pf_cr2], AREA - LOCALS + 8
	jne	.bad_local
	cmp	qword [pf_rsp], AREA - LOCALS
	jne	.bad_local
	mov	rdx, AREA + 32
	call	physical
	cmp	[rdx], rdi
	je	.good_local
.bad_local:
	inc	qword [wrong]
.good_local:
	dec	r14d
	jnz	.locals
	jmp	none_wrong

; Page 2 cannot be written to, after frames were over its upper end.
read_only:
	mov	r14d, ENOUGH
.before:
	mov	rsi, AREA + 3 * 4096 + 24
	mov	edi, r14d
	call	good_frame
	dec	r14d
	jnz	.before
	and	qword [w_pt + (PTE + 2) * 8], ~PTE_W
	invlpg	[AREA + 2 * 4096]
	mov	r14d, ENOUGH
.next:	mov	rsi, AREA + 3 * 4096 + 24
	mov	rdx, AREA + 3 * 4096 + 2048
	mov	edi, r14d
	call	frame
	cmp	eax, -1
	jne	.bad
	cmp	qword [pf_cr2], AREA + 3 * 4096 - 8
	jne	.bad
	cmp	qword [pf_error], 3
	jne	.bad
	cmp	qword [pf_rsp], AREA + 3 * 4096
	je	.good
.bad:	inc	qword [wrong]
.good:	dec	r14d
	jnz	.next
	or	qword [w_pt + (PTE + 2) * 8], PTE_W
	invlpg	[AREA + 2 * 4096]
	jmp	none_wrong

; Pages 3 and 4, which a frame is on, change places with pages 6 and 7.
exchanged:
	mov	r15d, 8
.times:	mov	r14d, ENOUGH / 8
.next:	mov	rsi, AREA + 4 * 4096 + 48
	mov	edi, r14d
	call	good_frame
	dec	r14d
	jnz	.next
	mov	ecx, 3
.page:	mov	rax, [w_pt + (PTE + rcx) * 8]
	xchg	rax, [w_pt + (PTE + 3 + rcx) * 8]
	mov	[w_pt + (PTE + rcx) * 8], rax
	mov	rax, [where + rcx * 8]
	xchg	rax, [where + 24 + rcx * 8]
	mov	[where + rcx * 8], rax
	mov	rdx, rcx
	shl	rdx, 12
	invlpg	[rdx + AREA]
	invlpg	[rdx + AREA + 3 * 4096]
	inc	ecx
	cmp	ecx, 5
	jb	.page
	dec	r15d
	jnz	.times
	jmp	none_wrong

; Where the area's pages lie the other way round.
other_space:
	mov	r15d, 64
.times:	mov	r14d, 32
.next:	mov	rsi, AREA + 5 * 4096 + 48
	mov	edi, r14d
	call	good_frame
	mov	rsi, AREA + 5 * 4096 - 2048
	mov	edi, r14d
	call	good_frame
	dec	r14d
	jnz	.next
	mov	rax, cr3
	xchg	rax, [other]
	mov	cr3, rax
	xor	ecx, ecx
.turn:	mov	edx, PAGES - 1
	sub	edx, ecx
	mov	rax, [where + rcx * 8]
	xchg	rax, [where + rdx * 8]
	mov	[where + rcx * 8], rax
	inc	ecx
	cmp	ecx, PAGES / 2
	jb	.turn
	dec	r15d
	jnz	.times
	jmp	none_wrong

; Linear pages 0 and 1 become the area's first two.
at_zero:
	xor	ecx, ecx
.map:	mov	eax, ecx
	shl	eax, 12
	or	eax, ALL
	mov	[low_pt + rcx * 8], rax
	inc	ecx
	cmp	ecx, 512
	jb	.map
	mov	rax, [where]
	or	eax, ALL
	mov	[low_pt], rax
	mov	rax, [where + 8]
	or	eax, ALL
	mov	[low_pt + 8], rax
	push	qword [pd]
	mov	qword [pd], low_pt + ALL
	mov	rax, cr3
	mov	cr3, rax
	mov	qword [base], 0
	mov	r14d, ENOUGH
.next:	mov	edi, r14d
	mov	esi, 4096 + 40
	call	good_frame
	mov	edi, r14d
	mov	esi, DEPTH
	call	good_frame
	mov	edi, r14d
	mov	esi, 8192
	call	good_frame
	dec	r14d
	jnz	.next
	; From linear address 0 downwards: to a canonical page that is not there.
	mov	r14d, ENOUGH
.below:	mov	esi, 16
	mov	edx, 2048
	call	frame
	cmp	eax, -1
	jne	.bad
	cmp	qword [pf_cr2], -8
	jne	.bad
	cmp	qword [pf_rsp], 0
	je	.good
.bad:	inc	qword [wrong]
.good:	dec	r14d
	jnz	.below
	mov	qword [base], AREA
	pop	qword [pd]
	mov	rax, cr3
	mov	cr3, rax
	jmp	none_wrong
