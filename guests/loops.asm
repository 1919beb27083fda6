; Loops of one block that walk through memory: up, down, with an index, from page to page that lie in no order, over pages
; that are not there or not writable, over the ends of the address space; and the same loops again after the page tables
; have changed. What a loop did is looked at through other addresses, by loops that are no walk.
%define GUEST "loops"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000
PHYS	equ FREE_MEMORY
PAGES	equ 8
QWORDS	equ PAGES * 512
TOP	equ 0xfffffffffffff000
LOWER	equ 0x00007ffffffff000		; the last page below what is not canonical
%define ALL (PTE_P | PTE_W | PTE_U)
%define WHERE(n) (PHYS + ((((n) * 5) + 3) & 7) * 4096)
%define SUM (QWORDS * (QWORDS + 1) / 2)	; of 1 to QWORDS

section .bss
	alignb	4096
w_pt:	resb	4096
high_pdpt: resb	4096
high_pd: resb	4096
high_pt: resb	4096
lower_pdpt: resb 4096
lower_pd: resb	4096
lower_pt: resb	4096
section .data
	align	8
where:
%assign i 0
%rep PAGES
	dq	WHERE(i)
%assign i i + 1
%endrep
faults:	dq	0
last_cr2: dq	0
wrong:	dd	0
environment: times 32 db 0
section .text

guest_main:
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	mov	qword [pml4 + 511 * 8], high_pdpt + ALL
	mov	qword [high_pdpt + 511 * 8], high_pd + ALL
	mov	qword [high_pd + 511 * 8], high_pt + ALL
	mov	qword [high_pt + 511 * 8], PHYS + 0x20000 + ALL
	mov	qword [pml4 + 255 * 8], lower_pdpt + ALL
	mov	qword [lower_pdpt + 511 * 8], lower_pd + ALL
	mov	qword [lower_pd + 511 * 8], lower_pt + ALL
	mov	qword [lower_pt + 511 * 8], PHYS + 0x21000 + ALL
	call	map_all
	mov	ebp, 3				; the first time not all is hot
.again:
	call	upwards
	call	downwards
	call	indexed
	call	displaced
	call	several
	call	crossing
	call	not_present
	call	read_only
	call	remapped
	call	ends
	call	own_page
	call	vectors
	call	x87_walk
	dec	ebp
	jnz	.again
	ret

map_all:
	xor	ecx, ecx
.next:	mov	rax, [where + rcx * 8]
	or	eax, ALL
	mov	[w_pt + rcx * 8], rax
	inc	ecx
	cmp	ecx, PAGES
	jb	.next
	mov	rax, cr3
	mov	cr3, rax
	ret

; The page of the fault comes in, writable.
page_in:
	mov	rax, cr2
	mov	[last_cr2], rax
	inc	dword [faults]
	mov	rcx, rax
	sub	rax, AREA
	shr	rax, 12
	cmp	rax, PAGES
	jae	.strange
	mov	rbx, [where + rax * 8]
	or	ebx, ALL
	mov	[w_pt + rax * 8], rbx
	invlpg	[rcx]
	ret
.strange:
	mov	qword [rdi + FRAME.ip], .give_up
	ret
.give_up:
	FAILED	"a page fault outside the area"
	jmp	guest_exit

; Fills the area with 1 to QWORDS: a walk upwards.
fill:
	mov	rdi, AREA
	mov	eax, 1
.next:	mov	[rdi], rax
	add	rdi, 8
	inc	rax
	cmp	rax, QWORDS
	jbe	.next
	ret

; The area is RBX, RBX + 1 and so on, by physical addresses.
look:
	mov	dword [wrong], 0
	xor	ecx, ecx
.next:	mov	eax, ecx
	shr	eax, 9
	mov	rdx, [where + rax * 8]
	mov	eax, ecx
	and	eax, 511
	cmp	[rdx + rax * 8], rbx
	je	.good
	inc	dword [wrong]
.good:	inc	rbx
	inc	ecx
	cmp	ecx, QWORDS
	jb	.next
	CHECK32	[wrong], 0
	ret

upwards:
	call	fill
	mov	ebx, 1
	call	look
	mov	rsi, AREA
	xor	edx, edx
.next:	add	rdx, [rsi]
	add	rsi, 8
	cmp	rsi, AREA + QWORDS * 8
	jne	.next
	CHECK	rdx, SUM
	; Reads and writes through two registers, one of which the extra registers hold.
	mov	r9, AREA
	mov	r10, AREA
.both:	mov	rax, [r9]
	add	rax, 7
	mov	[r10], rax
	add	r9, 8
	lea	r10, [r10 + 8]
	cmp	r9, AREA + QWORDS * 8
	jb	.both
	mov	ebx, 8
	call	look
	; A read-modify-write.
	mov	rsi, AREA
.modify:
	sub	qword [rsi], 7
	add	rsi, 8
	cmp	rsi, AREA + QWORDS * 8
	jb	.modify
	mov	ebx, 1
	call	look
	; A register that does not move, one that is a copy.
	mov	rsi, AREA + 16
	mov	rdi, AREA + 4096
	mov	ecx, 1000
	xor	edx, edx
.stands:
	add	rdx, [rsi]
	mov	rbx, rdi
	add	rdx, [rbx + 8]
	dec	rcx
	jnz	.stands
	CHECK	rdx, 1000 * (3 + 514)
	ret

downwards:
	mov	rsi, AREA + QWORDS * 8
	xor	edx, edx
	mov	ecx, QWORDS
.next:	add	rdx, [rsi - 8]
	sub	rsi, 8
	dec	rcx
	jnz	.next
	CHECK	rdx, SUM
	CHECK	rsi, AREA
	mov	rdi, AREA + QWORDS * 8 - 8
	mov	rax, QWORDS + 100
.fill:	mov	[rdi], rax
	sub	rdi, 8
	dec	rax
	cmp	rax, 100
	jne	.fill
	mov	ebx, 101
	call	look
	call	fill
	ret

indexed:
	xor	ecx, ecx
	xor	edx, edx
	mov	rsi, AREA
.up:	add	rdx, [rsi + rcx * 8]
	inc	rcx
	cmp	rcx, QWORDS
	jb	.up
	CHECK	rdx, SUM
	mov	rsi, AREA + QWORDS * 8
	mov	rcx, -QWORDS
	xor	edx, edx
.to_zero:
	add	rdx, [rsi + rcx * 8]
	inc	rcx
	jnz	.to_zero
	CHECK	rdx, SUM
	mov	rcx, QWORDS
	mov	rsi, AREA
	xor	edx, edx
.down:	add	rdx, [rsi + rcx * 8 - 8]
	dec	rcx
	jnz	.down
	CHECK	rdx, SUM
	; Both move, one against the other; the extra registers.
	mov	r9, AREA
	xor	r10d, r10d
	mov	r11d, QWORDS
	xor	edx, edx
.against:
	add	rdx, [r9 + r10 * 8]
	sub	r10, 1
	add	r9, 16
	dec	r11
	jnz	.against
	CHECK	rdx, SUM
	; By an index alone, stores.
	mov	rcx, AREA / 8
	mov	rax, 1001
.alone:	mov	[rcx * 8], rax
	inc	rax
	inc	rcx
	cmp	rcx, AREA / 8 + QWORDS
	jb	.alone
	mov	ebx, 1001
	call	look
	call	fill
	ret

; The displacement is the array.
displaced:
	xor	eax, eax
	xor	edx, edx
.next:	add	rdx, [AREA + rax]
	add	rax, 8
	cmp	rax, QWORDS * 8
	jb	.next
	CHECK	rdx, SUM
	xor	edx, edx
	mov	eax, QWORDS * 8
.down:	add	rdx, [AREA - 8 + rax]
	sub	rax, 8
	jnz	.down
	CHECK	rdx, SUM
	; Several at constant distances.
	xor	eax, eax
	xor	edx, edx
.four:	add	rdx, [AREA + rax]
	add	rdx, [AREA + rax + 8]
	add	rdx, [AREA + rax + 16]
	add	rdx, [AREA + rax + 24]
	add	rax, 32
	cmp	rax, QWORDS * 8
	jb	.four
	CHECK	rdx, SUM
	ret

; More walks than there is room for, with different steps.
several:
	mov	rsi, AREA
	mov	rdi, AREA + 4096 + 8
	mov	rbx, AREA + 2 * 4096
	mov	rcx, AREA + 8 * 4096 - 16
	mov	r8, AREA + 4 * 4096
	mov	r12, AREA + 5 * 4096
	mov	r13, AREA + 6 * 4096
	mov	r14, AREA + 7 * 4096
	mov	r15, AREA + 64
	mov	r9, AREA + 128
	mov	eax, 100
	xor	edx, edx
.next:	add	rdx, [rsi]
	add	rdx, [rdi]
	sub	rdx, [rbx]
	add	rdx, [rcx]
	xor	rdx, [r8]
	add	rdx, [r12]
	sub	rdx, [r13]
	add	rdx, [r14 + 8]
	add	rdx, [r15]
	sub	rdx, [r9]
	add	rsi, 8
	add	rdi, 16
	add	rbx, 24
	sub	rcx, 32
	add	r8, 8
	sub	r12, 8
	add	r13, 40
	add	r14, 16
	add	r15, 8
	add	r9, 64
	dec	rax
	jnz	.next
	push	rdx
	mov	rsi, AREA
	mov	rdi, AREA + 4096 + 8
	mov	rbx, AREA + 2 * 4096
	mov	rcx, AREA + 8 * 4096 - 16
	mov	r8, AREA + 4 * 4096
	mov	r12, AREA + 5 * 4096
	mov	r13, AREA + 6 * 4096
	mov	r14, AREA + 7 * 4096
	mov	r15, AREA + 64
	mov	r9, AREA + 128
	mov	eax, 100
	xor	edx, edx
.again:	add	rdx, [rsi]
	add	rdx, [rdi]
	jmp	$ + 2				; no walk
	sub	rdx, [rbx]
	add	rdx, [rcx]
	xor	rdx, [r8]
	add	rdx, [r12]
	sub	rdx, [r13]
	add	rdx, [r14 + 8]
	add	rdx, [r15]
	sub	rdx, [r9]
	add	rsi, 8
	add	rdi, 16
	add	rbx, 24
	sub	rcx, 32
	add	r8, 8
	sub	r12, 8
	add	r13, 40
	add	r14, 16
	add	r15, 8
	add	r9, 64
	dec	rax
	jnz	.again
	pop	rax
	CHECK	rax, rdx
	ret

; Steps that do not fit pages: some accesses cross.
crossing:
	mov	rdi, AREA + 3
	mov	eax, 1
.fill:	mov	[rdi], rax
	add	rdi, 24
	inc	rax
	cmp	rax, 1300
	jb	.fill
	xor	ecx, ecx
	mov	dword [wrong], 0
	mov	ebx, 1
.look:	; byte by byte
	lea	eax, [rcx + 3]
	xor	esi, esi
	xor	edx, edx
.byte:	mov	edi, eax
	shr	edi, 12
	mov	rdi, [where + rdi * 8]
	mov	r8d, eax
	and	r8d, 0xfff
	movzx	r8d, byte [rdi + r8]
	push	rcx
	mov	ecx, esi
	shl	r8, cl
	pop	rcx
	or	rdx, r8
	inc	eax
	add	esi, 8
	cmp	esi, 64
	jb	.byte
	cmp	rdx, rbx
	je	.good
	inc	dword [wrong]
.good:	add	ecx, 24
	inc	ebx
	cmp	ebx, 1300
	jb	.look
	CHECK32	[wrong], 0
	mov	rsi, AREA + 3 + 1298 * 24
	xor	edx, edx
	mov	ecx, 1299
.down:	add	rdx, [rsi]
	sub	rsi, 24
	dec	rcx
	jnz	.down
	CHECK	rdx, 1299 * 1300 / 2
	mov	rsi, AREA + 3
	xor	edx, edx
	xor	ecx, ecx
.index:	add	rdx, [rsi + rcx * 8]
	add	rcx, 3
	cmp	rcx, 1299 * 3
	jb	.index
	CHECK	rdx, 1299 * 1300 / 2
	call	fill
	ret

not_present:
	mov	qword [faults], 0
	mov	qword [w_pt + 2 * 8], 0
	mov	qword [w_pt + 5 * 8], 0
	mov	rax, cr3
	mov	cr3, rax
	HOOK	EXC_PF, page_in
	mov	rsi, AREA
	xor	edx, edx
.next:	add	rdx, [rsi]
	add	rsi, 8
	cmp	rsi, AREA + QWORDS * 8
	jne	.next
	CHECK	rdx, SUM
	CHECK	[faults], 2
	CHECK	[last_cr2], AREA + 5 * 4096
	mov	qword [w_pt + 2 * 8], 0
	mov	rax, cr3
	mov	cr3, rax
	mov	rsi, AREA + QWORDS * 8 - 8
	xor	edx, edx
	mov	rcx, QWORDS
.down:	add	rdx, [rsi]
	lea	rsi, [rsi - 8]
	dec	rcx
	jnz	.down
	CHECK	rdx, SUM
	CHECK	[faults], 3
	CHECK	[last_cr2], AREA + 3 * 4096 - 8
	mov	qword [w_pt + 4 * 8], 0
	mov	rax, cr3
	mov	cr3, rax
	xor	ecx, ecx
	mov	rsi, AREA
	xor	edx, edx
.index:	add	rdx, [rsi + rcx * 8]
	inc	rcx
	cmp	rcx, QWORDS
	jb	.index
	CHECK	rdx, SUM
	CHECK	[faults], 4
	HOOK	EXC_PF, 0
	; Registers at the fault, when nobody mends it.
	mov	qword [w_pt + 3 * 8], 0
	mov	rax, cr3
	mov	cr3, rax
	mov	rsi, AREA
	xor	edx, edx
	CATCH	.caught
.fault:	add	rdx, [rsi]
	add	rsi, 8
	cmp	rsi, AREA + QWORDS * 8
	jne	.fault
.caught:
	CAUGHT	EXC_PF, 0, .fault
	CHECK	rsi, AREA + 3 * 4096
	CHECK	rdx, 1536 * 1537 / 2
	call	map_all
	ret

read_only:
	mov	qword [faults], 0
	SET_CR	cr0, 1 << 16			; WP
	and	qword [w_pt + 3 * 8], ~PTE_W
	and	qword [w_pt + 6 * 8], ~PTE_W
	mov	rax, cr3
	mov	cr3, rax
	HOOK	EXC_PF, page_in
	mov	rdi, AREA
	mov	eax, 501
.next:	mov	[rdi], rax
	add	rdi, 8
	inc	rax
	cmp	rax, QWORDS + 500
	jbe	.next
	HOOK	EXC_PF, 0
	CHECK	[faults], 2
	CHECK	[last_cr2], AREA + 6 * 4096
	mov	ebx, 501
	call	look
	and	qword [w_pt + 3 * 8], ~PTE_W
	mov	rax, cr3
	mov	cr3, rax
	mov	rdi, AREA
	CATCH	.caught
.fault:	add	qword [rdi], 1
	add	rdi, 8
	cmp	rdi, AREA + QWORDS * 8
	jb	.fault
.caught:
	CAUGHT	EXC_PF, 3, .fault
	CHECK	rdi, AREA + 3 * 4096
	CLEAR_CR cr0, 1 << 16
	call	map_all
	call	fill
	ret

; The same loop on the same addresses, whose pages have changed.
remapped:
	mov	r12d, 6
.turn:	mov	rsi, AREA
	xor	edx, edx
.next:	add	rdx, [rsi]
	add	rsi, 8
	cmp	rsi, AREA + 2 * 4096
	jne	.next
	mov	rax, 1024 * 1025 / 2
	test	r12d, 1
	jz	.compare
	mov	rax, 512 * 1025 + 512 * 513 / 2 + 512 * 513 / 2 - 512
.compare:
	test	r12d, 1
	jnz	.swapped
	CHECK	rdx, 1024 * 1025 / 2		; pages 0 and 1
	mov	rax, WHERE(2) + ALL
	jmp	.set
.swapped:
	CHECK	rdx, 512 * 513 / 2 + 512 * 1024 + 512 * 513 / 2	; pages 0 and 2
	mov	rax, WHERE(1) + ALL
.set:	mov	[w_pt + 8], rax
	invlpg	[AREA + 4096]
	dec	r12d
	jnz	.turn
	call	map_all
	ret

; Over the ends of the address space. At 0 is low memory.
ends:
	mov	rdi, TOP
	mov	ecx, 512
	mov	rax, 77
.fill:	mov	[rdi], rax
	add	rdi, 8
	dec	rcx
	jnz	.fill
	mov	r8, [0]
	add	r8, [8]
	add	r8, [16]
	lea	r8, [r8 + 77 * 512]
	mov	rsi, TOP
	mov	ecx, 515
	xor	edx, edx
.up:	add	rdx, [rsi]
	add	rsi, 8
	dec	rcx
	jnz	.up
	CHECK	rdx, r8
	CHECK	rsi, 24
	mov	rsi, 16
	mov	ecx, 515
	xor	edx, edx
.down:	add	rdx, [rsi]
	sub	rsi, 8
	dec	rcx
	jnz	.down
	CHECK	rdx, r8
	CHECK	rsi, TOP - 8
	; The sum of base and index wraps on every access.
	mov	rsi, TOP + 4096 + 8 * 512
	mov	rcx, -1024
	xor	edx, edx
	mov	rdi, 515
.index:	add	rdx, [rsi + rcx * 8]
	inc	rcx
	dec	rdi
	jnz	.index
	CHECK	rdx, r8
	; Up to what is not canonical.
	mov	rsi, LOWER
	xor	edx, edx
	CATCH	.caught
.fault:	mov	[rsi], rsi
	add	rsi, 8
	inc	rdx
	cmp	rdx, 1000
	jne	.fault
.caught:
	CAUGHT	EXC_GP, 0, .fault
	CHECK	rsi, LOWER + 4096
	CHECK	rdx, 512
	ret

; A loop in the page that it walks through, up to itself and then over its own immediate.
own_page:
	mov	rdi, AREA + 5 * 4096 + 0xe00
	mov	rsi, .code
	mov	ecx, .code_end - .code
	rep	movsb
	mov	rdi, AREA + 4 * 4096
	xor	eax, eax
	mov	rbx, AREA + 5 * 4096 + 0xe00
	call	rbx
	CHECK	rdi, AREA + 5 * 4096 + 0xe00
	CHECK	rax, 512 + 0xe00 / 8
	mov	rdx, [WHERE(4)]
	CHECK	rdx, 1
	mov	rdx, [WHERE(5) + 0xdf8]
	CHECK	rdx, 512 + 0xe00 / 8
	; The count of the next rounds is changed by the loop.
	mov	rdi, AREA + 5 * 4096 + 0xe00 + (.patched - .code)
	mov	rsi, rdi
	xor	eax, eax
	mov	ecx, 1
	add	rbx, .second - .code
	call	rbx
	CHECK	rcx, 0x11223344 + 1
	call	fill
	ret
.code:	inc	rax
	mov	[rdi], rax
	add	rdi, 8
	cmp	rdi, AREA + 5 * 4096 + 0xe00
	jne	.code
	ret
.second:
	inc	eax
	mov	dword [rdi], 0x11223344
	mov	edx, 0
.patched equ $ - 4
	cmp	eax, 2
	jb	.second
	add	rcx, rdx
	ret
.code_end:

vectors:
	pxor	xmm0, xmm0
	mov	rsi, AREA
.next:	paddq	xmm0, [rsi]
	add	rsi, 16
	cmp	rsi, AREA + QWORDS * 8
	jne	.next
	movq	rax, xmm0
	psrldq	xmm0, 8
	movq	rdx, xmm0
	add	rdx, rax
	CHECK	rdx, SUM
	pxor	xmm0, xmm0
	xor	ecx, ecx
	mov	rsi, AREA + 8
.unaligned:
	movdqu	xmm1, [rsi + rcx]
	paddq	xmm0, xmm1
	movups	[rsi + rcx], xmm1
	add	rcx, 16
	cmp	rcx, QWORDS * 8 - 16
	jb	.unaligned
	movq	rax, xmm0
	psrldq	xmm0, 8
	movq	rdx, xmm0
	add	rdx, rax
	CHECK	rdx, SUM - 1 - QWORDS
	mov	ebx, 1
	call	look
	mov	rsi, AREA + 8
	CATCH	.caught
.fault:	paddq	xmm0, [rsi]
	add	rsi, 16
	cmp	rsi, AREA + QWORDS * 8
	jb	.fault
.caught:
	CAUGHT	EXC_GP, 0, .fault
	CHECK	rsi, AREA + 8
	ret

x87_walk:
	fninit
	fldz
	mov	rsi, AREA
.next:	fild	qword [rsi]
	add	rsi, 8
	faddp
	cmp	rsi, AREA + QWORDS * 8
	jne	.next
	fnstenv	[environment]
	CHECK32	[environment + 20], AREA + QWORDS * 8 - 8
	fistp	qword [environment]
	CHECK	[environment], SUM
	ret
