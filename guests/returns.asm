; CALLs and RETs that do not go together as compilers have it: return addresses that are rewritten, left out or made up,
; calls too deep for any predictor, stacks that are exchanged; and pages of code that are mapped otherwise, written (by
; this processor and another one) or entered with other rights between a CALL and its RET. A RET goes where its stack
; says, to the code that is there now, as the mode that it runs in.
%define GUEST "returns"
%define GUEST_BITS 64
%define GUEST_CPUS 2
%include "guest.inc"
%include "smp.inc"

AREA	equ 0x40000000
PHYS	equ FREE_MEMORY
STACKS	equ FREE_MEMORY + 0x100000
ROUNDS	equ 40
DEPTH	equ 20000
%define ALL (PTE_P | PTE_W | PTE_U)
%define AT(label) (AREA + label - code)

section .bss
	alignb	4096
w_pt:	resb	4096
pml4_b:	resb	4096
pdpt_b:	resb	4096
pd_b:	resb	4096 * 4
w_pt_b:	resb	4096
low_pt:	resb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
section .data
	align	8
other:	dq	pml4_b
number:	dd	0
section .text

guest_main:
	COPY_PAGES pml4, pml4_b
	COPY_PAGES pdpt, pdpt_b
	COPY_PAGES pd, pd_b, 4
	mov	qword [pml4_b], pdpt_b + ALL
%assign i 0
%rep 4
	mov	qword [pdpt_b + i * 8], pd_b + i * 4096 + ALL
%assign i i + 1
%endrep
	mov	qword [pd_b + (AREA >> 21) * 8], w_pt_b + ALL
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	; Pages 0 and 1 have the code, with numbers 1 and 2; each space begins with another one.
	xor	ebx, ebx
.copy:	mov	edi, ebx
	shl	edi, 12
	add	edi, PHYS
	mov	esi, code
	mov	ecx, code_end - code
	rep	movsb
	inc	ebx
	call	set_number
	cmp	ebx, 4
	jb	.copy
	mov	qword [w_pt], PHYS + ALL
	mov	qword [w_pt_b], PHYS + 0x1000 + ALL
	; All other code is in small pages, too: it makes a difference where pages are invalidated.
	xor	ecx, ecx
.small:	mov	eax, ecx
	shl	eax, 12
	add	eax, ALL
	mov	[low_pt + rcx * 8], rax
	inc	ecx
	cmp	ecx, 512
	jb	.small
	mov	qword [pd], low_pt + ALL
	mov	qword [pd_b], low_pt + ALL
	; The supervisor's page; one page of code at several addresses.
	mov	qword [w_pt + 8], PHYS + 0x8000 + PTE_P + PTE_W
	mov	dword [PHYS + 0x8000], 0x1234
%assign i 16
%rep 8
	mov	qword [w_pt + i * 8], PHYS + 0x2000 + ALL
%assign i i + 1
%endrep
	mov	rax, cr3
	mov	cr3, rax
	call	smp_start
	call	rewritten
	call	made_up
	call	deep
	call	left_over
	call	threads
	call	mapped
	call	edge
	call	written
	call	rights
	call	user_remaps
	call	floating
	call	views
	ret

; Of page EBX - 1.
set_number:
	lea	eax, [rbx - 1]
	shl	eax, 12
	mov	[rax + PHYS + code.number - code], ebx
	ret

; ---- the stack says where a RET goes ----

rewritten:
	mov	ecx, ROUNDS * 10
	xor	eax, eax
	xor	edx, edx
.next:
	call	.past_one
	inc	eax				; 2 bytes, left out
	inc	edx
	call	.by_turns
	jmp	.even
.odd:	add	edx, 0x10000
	jmp	.after
.even:	add	edx, 0x100
.after:	call	.twice_back
	dec	ecx
	jnz	.next
	CHECK	rax, 0
	CHECK	rdx, ROUNDS * 10 + ROUNDS * 5 * 0x10000 + ROUNDS * 5 * 0x100
	ret
.past_one:
	add	qword [rsp], 2
	ret
.by_turns:
	test	cl, 1
	jz	.as_it_is
	mov	qword [rsp], .odd
.as_it_is:
	ret
.twice_back:
	call	.drops
	inc	eax				; never
	ret
.drops:	add	rsp, 8
	ret

made_up:
	mov	ecx, ROUNDS * 10
	xor	edx, edx
	mov	rbx, rsp
.next:
	push	.there
	ret
	inc	edx				; never
.there:	push	1
	push	2
	call	.two
	add	edx, eax
	push	3
	push	.here
	ret	8
	inc	edx
.here:	dec	ecx
	jnz	.next
	CHECK	rsp, rbx
	CHECK	rdx, ROUNDS * 30
	ret
.two:	mov	rax, [rsp + 8]
	add	rax, [rsp + 16]
	ret	16

; 1 to DEPTH are added up on the way back, in one function and in two that call one another.
deep:
	mov	ebx, 3
	mov	rbp, rsp
.again:
	mov	rsp, STACKS + 0x100000
	mov	ecx, DEPTH
	xor	eax, eax
	call	.one
	mov	rdx, DEPTH * (DEPTH + 1) / 2
	xchg	rsp, rbp
	CHECK	rax, rdx
	xchg	rsp, rbp
	mov	ecx, DEPTH
	xor	eax, eax
	call	.odd
	xchg	rsp, rbp
	CHECK	rax, rdx
	mov	rdx, STACKS + 0x100000
	CHECK	rbp, rdx
	xchg	rsp, rbp
	dec	ebx
	jnz	.again
	mov	rsp, rbp
	ret
.one:	push	rcx
	dec	ecx
	jz	.last
	call	.one
.last:	pop	rcx
	add	rax, rcx
	ret
.odd:	push	rcx
	dec	ecx
	jz	.last
	call	.even
	pop	rcx
	add	rax, rcx
	ret
.even:	push	rcx
	dec	ecx
	jz	.last
	lea	rdx, [rel .odd]
	call	rdx
	mov	rdx, DEPTH * (DEPTH + 1) / 2
	jmp	.last

; CALLs that nobody comes back to.
left_over:
	mov	ecx, DEPTH
	xor	edx, edx
.next:	call	.here
.here:	pop	rax
	cmp	rax, .here
	jne	.wrong
	inc	edx
.wrong:	dec	ecx
	jnz	.next
	CHECK	rdx, DEPTH
	ret

; Threads that give way in the depth of their calls: RBX is the stack of the one that waits.
threads:
	mov	r12d, 4
.again:
	mov	rbx, STACKS + 0x8000
	mov	qword [rbx - 8], .second
	sub	rbx, 8
	xor	r13d, r13d
	xor	r14d, r14d
	mov	r15d, ROUNDS
.next:	mov	ecx, r15d
	and	ecx, 7
	call	.first
	dec	r15d
	jnz	.next
	CHECK	r13, ROUNDS / 8 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8)
	CHECK	r14, ROUNDS
	dec	r12d
	jnz	.again
	ret
.first:	inc	r13d
	test	ecx, ecx
	jz	.give
	dec	ecx
	call	.first
	ret
.give:	call	.switch
	ret
.second:
	call	.count
	call	.switch
	call	.more
	jmp	.second
.more:	call	.count
	call	.switch
	ret
.count:	inc	r14d
	ret
.switch:
	xchg	rsp, rbx
	ret

; ---- another page is there ----

; Page 0 of the area changes between CALL and RET: by INVLPG, loads of CR3, with a global page, and as another space.
; EBX: how, RBP: the number that the code has then.
mapped:
	mov	r12d, ROUNDS
.next:
	mov	eax, r12d
	xor	edx, edx
	mov	ecx, 5
	div	ecx
	mov	ebx, edx
	mov	rsi, .change
	mov	ebp, -1
	mov	rax, AT(code.by_register)
	call	rax
	CHECK	rax, rbp
	; Once more, left and then entered by a far RET.
	mov	rsi, .change_far
	mov	rax, AT(code.by_register)
	call	rax
	CHECK	rax, rbp
	mov	rsi, .change
	mov	rax, AT(code.by_register)
	push	.behind
	push	SEL_CODE
	push	rax
	o64 retf
.behind:
	CHECK	rax, rbp
	; And as it is now, some times.
	mov	r13d, 20
.same:	mov	rsi, .nothing
	mov	rax, AT(code.by_register)
	call	rax
	cmp	rax, rbp
	jne	.wrong
	mov	rax, AT(code.direct)
	call	rax
	cmp	rax, rbp
	jne	.wrong
	dec	r13d
	jnz	.same
.wrong:	CHECK	rax, rbp
	dec	r12d
	jnz	.next
	; The first space again.
	mov	rax, cr3
	cmp	rax, pml4
	je	.there
	xor	ebx, ebx
	call	.space
.there:	ret
.change_far:
	call	.change
	pop	rax
	push	SEL_CODE
	push	rax
	o64 retf
.change:
	lea	rax, [.ways]
	jmp	[rax + rbx * 8]
.nothing:
	ret
.table:						; RDX: where this space has its entry
	mov	edx, w_pt
	mov	rcx, cr3
	cmp	rcx, pml4
	je	.found
	mov	edx, w_pt_b
.found:	mov	rax, [rdx]
	and	eax, 0xfffff000
	cmp	eax, PHYS
	mov	eax, PHYS
	mov	ebp, 1
	jne	.first
	mov	eax, PHYS + 0x1000
	mov	ebp, 2
.first:	ret
.page:	call	.table
	add	eax, ALL
	mov	[rdx], rax
	mov	rcx, AREA
	invlpg	[rcx]
	ret
.load:	call	.table
	add	eax, ALL
	mov	[rdx], rax
	mov	rcx, cr3
	mov	cr3, rcx
	ret
.global:
	call	.table
	add	eax, ALL | PTE_G
	mov	[rdx], rax
	mov	rcx, AREA
	invlpg	[rcx]
	call	.table
	add	eax, ALL | PTE_G
	mov	[rdx], rax
	mov	rcx, cr4			; toggling PGE drops global pages
	xor	ecx, CR4_PGE
	mov	cr4, rcx
	xor	ecx, CR4_PGE
	mov	cr4, rcx
	ret
.space:	mov	rcx, cr3
	xchg	rcx, [other]
	mov	cr3, rcx
	mov	edx, w_pt			; what is there
	cmp	rcx, pml4
	je	.here
	mov	edx, w_pt_b
.here:	mov	rax, [rdx]
	and	eax, 0xfffff000
	cmp	eax, PHYS
	mov	ebp, 1
	je	.is_first
	mov	ebp, 2
.is_first:
	mov	rcx, AREA
	invlpg	[rcx]				; it may be global
	ret
.ways:	dq	.page, .load, .global, .space, .page

; CALLs whose return address is in the next page: one ends with the page, one crosses into it.
edge:
	mov	byte [PHYS + 0x4ffe], 0xff	; CALL RSI
	mov	byte [PHYS + 0x4fff], 0xd6
	mov	byte [PHYS + 0x5ffd], 0xe8	; CALL $ + 5 + 16, there: CALL RSI; RET
	mov	word [PHYS + 0x5ffe], 16
%assign i 6
%rep 2
	mov	byte [PHYS + i * 0x1000 - 0x6000 + 0xb000], 0xb8	; MOV EAX, i; RET
	mov	dword [PHYS + i * 0x1000 - 0x6000 + 0xb001], i
	mov	byte [PHYS + i * 0x1000 - 0x6000 + 0xb005], 0xc3
	mov	word [PHYS + i * 0x1000], 0		; of the displacement
	mov	byte [PHYS + i * 0x1000 + 2], 0xb8
	mov	dword [PHYS + i * 0x1000 + 3], i
	mov	byte [PHYS + i * 0x1000 + 7], 0xc3
	mov	dword [PHYS + i * 0x1000 + 18], 0xc3d6ff
%assign i i + 1
%endrep
	mov	qword [w_pt + 4 * 8], PHYS + 0x4000 + ALL
	mov	qword [w_pt + 5 * 8], PHYS + 0xb000 + ALL
	mov	qword [w_pt + 6 * 8], PHYS + 0x5000 + ALL
	mov	qword [w_pt + 7 * 8], PHYS + 0x6000 + ALL
	mov	ebx, ROUNDS
.next:
	mov	rsi, .change
	mov	rax, AREA + 0x4ffe
	call	rax
	CHECK	rax, rbp
	mov	r13d, 10
.same:	mov	rsi, .nothing
	mov	rax, AREA + 0x4ffe
	call	rax
	CHECK	rax, rbp
	dec	r13d
	jnz	.same
	mov	rsi, .change_other
	mov	rax, AREA + 0x6ffd
	call	rax
	CHECK	rax, rbp
	mov	r13d, 10
.as_well:
	mov	rsi, .nothing
	mov	rax, AREA + 0x6ffd
	call	rax
	CHECK	rax, rbp
	dec	r13d
	jnz	.as_well
	dec	ebx
	jnz	.next
	ret
.nothing:
	ret
.change:
	mov	rdi, AREA + 0x5000
	mov	edx, w_pt + 5 * 8
	mov	eax, PHYS + 0xb000 + ALL
	jmp	.set
.change_other:
	mov	rdi, AREA + 0x7000
	mov	edx, w_pt + 7 * 8
	mov	eax, PHYS + 0x6000 + ALL
.set:	mov	ebp, 6
	test	bl, 1
	jz	.first
	mov	ebp, 7
	add	eax, 0x1000
.first:	mov	[rdx], rax
	invlpg	[rdi]
	ret

; ---- other code is there ----

written:
	mov	ebx, 100
	mov	r12d, ROUNDS
.next:
	inc	ebx
	mov	rsi, .write
	test	ebx, 1
	jz	.own
	mov	rsi, .other_writes
.own:	mov	rax, AT(code.by_register)
	call	rax
	CHECK	rax, rbx
	mov	r13d, 20
.same:	mov	rax, AT(code.direct)
	call	rax
	cmp	rax, rbx
	jne	.wrong
	dec	r13d
	jnz	.same
.wrong:	CHECK	rax, rbx
	dec	r12d
	jnz	.next
	ret
.write:
	mov	edx, ebx
.both:	mov	[PHYS + code.number - code], edx
	mov	[PHYS + 0x1000 + code.number - code], edx
	ret
.other_writes:
	mov	[number], ebx
	ON_CPU	1, .there
	call	smp_wait
	ret
.there:	mov	edx, [number]
	jmp	.both

; ---- as another mode ----

; A return address that the supervisor has called from is the user's RET's, and the other way round: what is there reads
; a page of the supervisor's.
rights:
	mov	r12d, ROUNDS
	mov	rdi, AREA + 0x1000
.next:
	mov	rsi, .enter_user
	mov	rax, AT(code.reads)
	call	rax
	CHECK	rax, 0x1234
	; The user calls, the supervisor returns.
	mov	rsi, .user_out
	mov	rbx, AT(code.reads)
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_UD, 0
	xor	eax, eax
	push	.back
	push	AT(code.reads_back)
	ret
.back:	CHECK	rax, 0x1234
	; And both as they should be.
	mov	rsi, .nothing
	mov	rax, AT(code.reads)
	call	rax
	CHECK	rax, 0x1234
	mov	rbx, AT(code.reads)
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_PF, PF_P | PF_U
	CHECK	[caught_cr2], rdi
	dec	r12d
	jnz	.next
	ret
.enter_user:
	mov	rbx, AT(code.reads_back)
	mov	[user_stack_top - 8], rbx
	mov	rcx, user_stack_top - 8
	mov	rdx, .nothing
	ENTER_AT SEL_USER_CODE64, rdx, SEL_USER_DATA, rcx
	CAUGHT	EXC_PF, PF_P | PF_U
	CHECK	[caught_ip], rbx
	CHECK	[caught_cr2], rdi
	xor	eax, eax
.nothing:
	ret
.user_out:
	ud2

; The user's page is another one, or written, when the user's call comes back: an interrupt's handler did it.
user_remaps:
	GATE	0x60, .handler, 0xee
	mov	r12d, ROUNDS
.next:
	mov	rsi, .interrupt
	mov	rbx, .user
	mov	ebp, -1
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_UD, 0
	CHECK	rax, rbp
	dec	r12d
	jnz	.next
	ret
.user:
	mov	rax, AT(code.by_register)
	call	rax
	mov	r15d, eax
	mov	rsi, .nothing
	mov	r14d, 20
.same:	mov	rax, AT(code.by_register)
	call	rax
	cmp	eax, r15d
	jne	.differs
	dec	r14d
	jnz	.same
.differs:
	ud2
.interrupt:
	int	0x60
.nothing:
	ret
.handler:
	test	r12d, 1
	jz	.is_written
	call	mapped.page
	mov	ebp, [rax - ALL + code.number - code]
	iretq
.is_written:
	mov	ebp, r12d
	add	ebp, 1000
	mov	[PHYS + code.number - code], ebp
	mov	[PHYS + 0x1000 + code.number - code], ebp
	iretq

; User code that is run at many addresses knows which one it is at, behind calls as well.
floating:
	mov	r12d, 4
.again:
	mov	rbx, .user
	ENTER_AT SEL_USER_CODE64, rbx, SEL_USER_DATA, user_stack_top
	CAUGHT	EXC_UD, 0
	CHECK	rdx, 8 * 200
	CHECK	rcx, 0
	; Half of them lead to another page of the same code.
%assign i 16
%rep 4
	xor	qword [w_pt + i * 8], (PHYS + 0x2000) ^ (PHYS + 0x3000)
	mov	rax, AREA + i * 0x1000
	invlpg	[rax]
%assign i i + 1
%endrep
	dec	r12d
	jnz	.again
	ret
.user:
	xor	edx, edx
	mov	r13d, 200
.round:	mov	rcx, AREA + 0x10000
.next:	mov	r8, rcx
	xor	r8, 0x1000
	add	r8, code.near - code
	lea	rax, [rcx + code.where - code]
	call	rax
	cmp	rax, rcx
	jne	.out
	inc	edx
	add	rcx, 0x1000
	cmp	rcx, AREA + 0x18000
	jb	.next
	dec	r13d
	jnz	.round
	xor	ecx, ecx
.out:	ud2

; Functions that open the user's pages and close them: what follows the CALL may read them, or not (SMAP).
views:
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	test	ebx, 1 << 20
	jnz	.have
	PRINT	GUEST, ": no SMAP", 10
	ret
.have:
	and	qword [pml4], ~PTE_U
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	mov	qword [t_pt], PHYS + 0xe000 + ALL
	mov	dword [PHYS + 0xe000], 0x5678
	mov	rax, cr3
	mov	cr3, rax
	SET_CR	cr4, CR4_SMAP
	mov	rdi, 0x8000000000
	mov	r12d, ROUNDS
.next:
	xor	eax, eax
	call	.open
	mov	eax, [rdi]
	call	.nothing
	add	eax, [rdi]
	call	.close
	CHECK	rax, 2 * 0x5678
	CATCH	.caught
	call	.open_and_close
.reads:	mov	eax, [rdi]
.caught:
	CAUGHT	EXC_PF, PF_P, .reads
	call	.open
	mov	eax, [rdi]
	CATCH	.caught_again
	call	.close
.reads_again:
	mov	eax, [rdi]
.caught_again:
	CAUGHT	EXC_PF, PF_P, .reads_again
	mov	r13d, 10
.same:	call	.open
	call	.nothing
	call	.nested
	mov	eax, [rdi]
	call	.close
	call	.nothing
	dec	r13d
	jnz	.same
	; At one place in both ways.
	mov	r13d, 10
	xor	ecx, ecx
.read:	call	.opened
	dec	r13d
	jnz	.read
	inc	ecx
	CATCH	.caught_there
	call	.opened
.caught_there:
	CAUGHT	EXC_PF, PF_P, .may_read
	dec	r12d
	jnz	.next
	CLEAR_CR cr4, CR4_SMAP
	ret
.opened:
	call	.open
	call	.may_close
.may_read:
	mov	eax, [rdi]
	call	.close
	ret
.may_close:
	test	ecx, ecx
	jnz	.close
	ret
.open:	stac
	ret
.close:	clac
.nothing:
	ret
.nested:
	clac
	call	.nothing
	stac
	ret
.open_and_close:
	call	.open
	mov	eax, [rdi]
	call	.close
	ret

; ---- code that is copied ----

	align	64
code:
; RSI is called; RAX: the number.
.by_register:
	call	rsi
	mov	edx, [rel .number]
.mov:	db	0xb8			; MOV EAX, imm32
.number:
	dd	0
	ret
.direct:
	push	rbx
	call	.inner
	pop	rbx
	ret
.inner:	call	.mov
	ret
; RSI is called; then [RDI] is read.
.reads:
	call	rsi
.reads_back:
	mov	eax, [rdi]
	ret
; RAX: the page that it is in.
.where:
	push	rbx
	call	.near
	mov	rbx, rax
	lea	rax, [rel .near]
	call	rax
	cmp	rax, rbx
	jne	.odd
	lea	rax, [rel code]
	cmp	rax, rbx
	jne	.odd
	xor	eax, eax
	call	r8			; the next page's .near
	xor	eax, 0x1000
	cmp	rax, rbx
	jne	.odd
	lea	rax, [rel code]
	pop	rbx
	ret
.odd:	xor	eax, eax
	pop	rbx
	ret
.near:	call	.nearer
	lea	rax, [rel code]
	ret
.nearer:
	ret
code_end:
	align	4096			; what is written all the time is not in the pages of code
