; Hot loops whose accesses jump about among neighbouring pages that lie in no order in physical memory: reads, stores and
; both, of one page and over two, and the same again after pages were exchanged, taken away, made read-only, and in
; another address space. What should have happened is found through physical addresses, which are other linear ones.
%define GUEST "jumping"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000 + 0x1f8000	; up to the end of a page table and into the next one
PHYS	equ FREE_MEMORY
LIST	equ PHYS + 0x100000
PAGES	equ 16
QWORDS	equ PAGES * 512
ROUNDS	equ 30000
%define ALL (PTE_P | PTE_W | PTE_U)
%define WHERE(n) (PHYS + ((((n) * 5) + 3) & (PAGES - 1)) * 4096)

section .bss
	alignb	4096
w_pt:	resb	4096 * 2		; for 4 MiB
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
a:	dq	6364136223846793005
other:	dq	pml4_b
faults:	dq	0
wrong:	dd	0
section .text

guest_main:
	mov	rdi, pd + (0x40000000 >> 21) * 8
	mov	qword [rdi], w_pt + ALL
	mov	qword [rdi + 8], w_pt + 4096 + ALL
	; A second address space, the same but for the area.
	COPY_PAGES pml4, pml4_b
	COPY_PAGES pdpt, pdpt_b
	mov	qword [pml4_b], pdpt_b + ALL
	mov	qword [pdpt_b + 8], pd_b + ALL
	mov	qword [pd_b], w_pt_b + ALL
	mov	qword [pd_b + 8], w_pt_b + 4096 + ALL
	call	map_all
	call	fill
	call	walk				; while no page has an alias
	call	many_bases
	mov	ebp, 4				; the first time not all is hot
.again:
	call	reads
	call	stores
	call	both
	call	crossing
	call	exchanged
	call	other_space
	call	not_present
	call	read_only
	call	same_page
	dec	ebp
	jnz	.again
	ret

; Accesses at many addresses in one block, some of them two at one, and then one on a page whose place in the TLB is the
; first, as a supervisor who may not touch user pages: that TLB is the first one. The page is not mapped to itself.
FIRST	equ 0x4000000
many_bases:
	mov	qword [pd + (FIRST >> 21) * 8], FIRST + 0x1000000 + PTE_PS + ALL
	call	change_user_bits
	SET_CR	cr4, CR4_SMAP
	mov	r14d, 20			; not hot: ranges would remember
.next:	mov	[FIRST], r14
	mov	esi, PHYS
	xor	eax, eax
	call	.bases
	sub	eax, r15d
	or	[wrong], eax
	mov	rax, [FIRST]
	sub	eax, r14d
	or	[wrong], eax
	mov	[FIRST], r14
	dec	r14d
	jnz	.next
	CLEAR_CR cr4, CR4_SMAP
	mov	qword [pd + (FIRST >> 21) * 8], FIRST + PTE_PS + PTE_P + PTE_W
	call	change_user_bits
	CHECK32	[wrong], 0
	ret
.bases:	xor	r15d, r15d
%assign i 0
%rep 24
	mov	ecx, [rsi + i * 4096]		; too far apart for one check
%if i == 18 || i == 19
	mov	[rsi + i * 4096], ecx
%endif
%assign i i + 1
%endrep
	ret

; Of the memory that is mapped to itself.
change_user_bits:
	xor	ecx, ecx
.next:	xor	qword [pd + rcx * 8], PTE_U
	inc	ecx
	cmp	ecx, 0x40000000 >> 21
	jb	.next
	mov	rax, cr3
	mov	cr3, rax
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

; Each qword is its number times three, and all are different.
fill:
	xor	ecx, ecx
.next:	mov	eax, ecx
	shr	eax, 9
	mov	rdi, [where + rax * 8]
	mov	eax, ecx
	and	eax, 511
	lea	rdx, [rcx + rcx * 2]
	mov	[rdi + rax * 8], rdx
	inc	ecx
	cmp	ecx, QWORDS
	jb	.next
	ret

; What sum() gives, by physical addresses.
true_sum:
	mov	eax, 9
	xor	edx, edx
	mov	ebx, ROUNDS
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, QWORDS - 1
	mov	esi, ecx
	shr	esi, 9
	mov	rsi, [where + rsi * 8]
	mov	edi, ecx
	and	edi, 511
	add	rdx, [rsi + rdi * 8]
	test	cl, 1
	jz	.even
	add	rdx, 5
.even:	dec	ebx
	jnz	.next
	mov	r15, rdx
	ret

; RDX: what was read at many places.
sum:
	mov	eax, 9
	xor	edx, edx
	mov	ebx, ROUNDS
	mov	rsi, AREA
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, QWORDS - 1
	add	rdx, [rsi + rcx * 8]
	test	cl, 1
	jz	.even
	add	rdx, 5
.even:	dec	ebx
	jnz	.next
	ret

reads:
	call	true_sum
	call	sum
	CHECK	rdx, r15
	; Through a register alone, and the next word with it; in registers that are elsewhere.
	mov	eax, 9
	xor	r10d, r10d
	mov	r11d, ROUNDS
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	r9, rax
	shr	r9, 40
	and	r9d, QWORDS - 2
	lea	r8, [AREA + r9 * 8]
	mov	rcx, [r8]
	add	rcx, 3
	cmp	rcx, [r8 + 8]
	je	.good
	inc	r10d
.good:	dec	r11
	jnz	.next
	CHECK	r10, 0
	ret

; Adds R14 at places that sum() does not know of, by stores.
add_all:
	mov	eax, 77
	mov	ebx, ROUNDS
	mov	rsi, AREA
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, QWORDS - 1
	lea	rdi, [rsi + rcx * 8]
	test	cl, 1
	jz	.even
	add	[rdi], r14
	jmp	.done
.even:	add	[rsi + rcx * 8], r14
.done:	dec	ebx
	jnz	.next
	ret

; All is as fill() made it.
look:
	mov	dword [wrong], 0
	xor	ecx, ecx
.next:	mov	eax, ecx
	shr	eax, 9
	mov	rdi, [where + rax * 8]
	mov	eax, ecx
	and	eax, 511
	lea	rdx, [rcx + rcx * 2]
	cmp	[rdi + rax * 8], rdx
	je	.good
	inc	dword [wrong]
.good:	inc	ecx
	cmp	ecx, QWORDS
	jb	.next
	CHECK32	[wrong], 0
	ret

both:
	mov	r14d, 12345
	call	add_all
	call	true_sum
	call	sum
	CHECK	rdx, r15
	mov	r14, -12345
	call	add_all
	call	look
	ret

; Through a list of places, whose words are read before the place and behind it.
walk:
	mov	eax, 55
	mov	edi, LIST
	xor	r12d, r12d
	mov	ebx, ROUNDS
.list:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, QWORDS - 1
	mov	[rdi], ecx
	add	r12, rcx
	not	ecx
	mov	[rdi + 4], ecx
	add	rdi, 8
	dec	ebx
	jnz	.list
	lea	r12, [r12 + r12 * 2]
	xor	eax, eax
	xor	edx, edx
	mov	esi, LIST
	mov	rdi, AREA
	mov	ebx, ROUNDS
	align	8
	times 4	nop			; such blocks are hot with --translate-after 1
.next:	mov	ecx, [rsi]
	add	rdx, [rdi + rcx * 8]
	add	ecx, [rsi + 4]
	sub	eax, ecx
	add	rsi, 8
	dec	ebx
	jnz	.next
	CHECK	rax, ROUNDS
	CHECK	rdx, r12
	ret

; Each place gets what it had, by a store alone.
stores:
	mov	eax, 31
	mov	ebx, ROUNDS
	mov	rsi, AREA
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, QWORDS - 1
	lea	rdx, [rcx + rcx * 2]
	mov	[rsi + rcx * 8], rdx
	test	cl, 1
	jz	.even
	nop
.even:	dec	ebx
	jnz	.next
	call	look
	ret

; At any byte: over the ends of pages.
crossing:
	mov	eax, 31
	mov	ebx, ROUNDS
	mov	rsi, AREA
	xor	r13d, r13d
.next:	imul	rax, [a]
	add	rax, 1442695
	mov	rcx, rax
	shr	rcx, 40
	and	ecx, (PAGES - 1) * 4096
	sub	rcx, 3
	jc	.first
	mov	r12, rcx
	shr	r12, 3
	lea	rdx, [r12 + r12 * 2]		; bytes 5 to 7 of this one and 0 to 4 of the next
	shr	rdx, 40
	lea	rdi, [r12 + r12 * 2 + 3]
	shl	rdi, 24
	or	rdx, rdi
	cmp	[rsi + rcx], rdx
	je	.good
	inc	r13d
.good:	mov	[rsi + rcx], rdx
.first:	dec	ebx
	jnz	.next
	CHECK	r13, 0
	call	look
	ret

; Pages 3 and 11 change places, with INVLPG; then back, with CR3.
exchange:
	mov	rax, [w_pt + (PTE + 3) * 8]
	xchg	rax, [w_pt + (PTE + 11) * 8]
	mov	[w_pt + (PTE + 3) * 8], rax
	mov	rax, [where + 3 * 8]
	xchg	rax, [where + 11 * 8]
	mov	[where + 3 * 8], rax
	ret

exchanged:
	call	exchange
	invlpg	[AREA + 3 * 4096]
	invlpg	[AREA + 11 * 4096]
	call	true_sum
	mov	r12, r15
	call	sum
	CHECK	rdx, r15
	mov	r14d, 999
	call	add_all
	call	true_sum
	call	sum
	CHECK	rdx, r15
	mov	r14, -999
	call	add_all
	call	exchange
	mov	rax, cr3
	mov	cr3, rax
	call	look
	call	true_sum
	call	sum
	CHECK	rdx, r15
	ret

; Where the pages are the other way round.
turn:
	xor	ecx, ecx
	mov	edx, PAGES - 1
.next:	mov	rax, [where + rcx * 8]
	xchg	rax, [where + rdx * 8]
	mov	[where + rcx * 8], rax
	inc	ecx
	dec	edx
	cmp	ecx, edx
	jb	.next
	ret

other_space:
	mov	r13d, 4
.next:	mov	rax, cr3
	xchg	rax, [other]
	mov	cr3, rax
	call	turn
	call	true_sum
	call	sum
	CHECK	rdx, r15
	mov	r14d, 4711
	call	add_all
	call	true_sum
	call	sum
	CHECK	rdx, r15
	mov	r14, -4711
	call	add_all
	dec	r13d
	jnz	.next
	call	look
	ret

; The page comes back, writable.
page_in:
	inc	dword [faults]
	mov	rax, cr2
	mov	rcx, rax
	mov	rdx, AREA
	sub	rax, rdx
	shr	rax, 12
	cmp	rax, PAGES
	jae	.strange
	mov	rbx, [where + rax * 8]
	or	ebx, ALL
	mov	[w_pt + (PTE + rax) * 8], rbx
	invlpg	[rcx]
	ret
.strange:
	mov	qword [rdi + FRAME.ip], .give_up
	ret
.give_up:
	FAILED	"a page fault outside the area"
	jmp	guest_exit

not_present:
	mov	qword [faults], 0
	HOOK	EXC_PF, page_in
	mov	qword [w_pt + (PTE + 5) * 8], 0
	mov	rax, AREA + 5 * 4096
	invlpg	[rax]
	mov	qword [w_pt + (PTE + 8) * 8], 0
	mov	rax, AREA + 8 * 4096
	invlpg	[rax]
	call	true_sum
	call	sum
	CHECK	rdx, r15
	CHECK	[faults], 2
	HOOK	EXC_PF, 0
	ret

read_only:
	SET_CR	cr0, 1 << 16			; WP
	mov	qword [faults], 0
	HOOK	EXC_PF, page_in
	and	qword [w_pt + (PTE + 6) * 8], ~PTE_W
	and	qword [w_pt + (PTE + 9) * 8], ~PTE_W
	mov	rax, cr3
	mov	cr3, rax
	call	true_sum
	call	sum
	CHECK	rdx, r15
	CHECK	[faults], 0
	mov	r14d, 321
	call	add_all
	CHECK	[faults], 2
	mov	r14, -321
	call	add_all
	call	look
	HOOK	EXC_PF, 0
	CLEAR_CR cr0, 1 << 16
	ret

; Copies over one another, through different addresses of one page.
same_page:
	mov	r12d, 200
	mov	dword [wrong], 0
.next:	mov	ebx, r12d
	and	ebx, PAGES - 1
	mov	r8, [where + rbx * 8]
	shl	ebx, 12
	lea	rsi, [AREA + 0x100 + rbx]
	lea	rdi, [r8 + 0x101]
	mov	[rsi], r12b
	mov	ecx, 300
	rep	movsb
	lea	rsi, [r8 + 0x300]
	lea	rdi, [AREA + 0x302 + rbx]
	mov	[rdi - 2], r12w
	mov	ecx, 100
	rep	movsw
	cmp	[r8 + 0x100 + 300], r12b
	jne	.bad
	cmp	[r8 + 0x302 + 198], r12w
	je	.good
.bad:	inc	dword [wrong]
.good:	dec	r12d
	jnz	.next
	CHECK32	[wrong], 0
	call	fill
	ret
