; Loops of user code with CALLs of short functions in another page, as they are when a translator takes them for one piece
; of code: ways out of the callee, return addresses that it rewrites, moves, or that are written through another register,
; flags that go in and out, targets that change, recursion, a fault in the callee, code that caller and callee write of one
; another; at several addresses, and while the callees' page is exchanged.
%define GUEST "calls"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000
STRIDE	equ 0x10000
PHYS	equ FREE_MEMORY
COPIES	equ 7
LOOPS	equ 640
FIRST	equ 5				; numbers that the callees' pages have
SECOND	equ 9
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
w_pt:	resb	4096
result:	resq	1
section .data
	align	8
where:	dq	0
base:	dq	0
argument: dq	0
section .text

guest_main:
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	mov	esi, code
	mov	edi, PHYS
	mov	ecx, code_end - code
	rep	movsb
	mov	esi, code.callees
	mov	edi, PHYS + 0x3000
	mov	ecx, code_end - code.callees
	rep	movsb
	mov	dword [PHYS + 0x3000 + code.number - code.callees], SECOND
	; Pages of each copy: loops, callees, data.
	xor	ecx, ecx
.map:	mov	edx, ecx
	shl	edx, 7
	mov	qword [w_pt + rdx], PHYS + ALL
	mov	qword [w_pt + rdx + 8], PHYS + 0x1000 + ALL
	mov	qword [w_pt + rdx + 16], PHYS + 0x2000 + ALL
	inc	ecx
	cmp	ecx, COPIES
	jb	.map
	mov	rax, cr3
	mov	cr3, rax
	mov	dword [base], AREA
	call	all
	call	all
	call	fault
	call	exchanged
	; At the other addresses: it floats now.
	mov	ebp, 1
.copy:	mov	eax, ebp
	shl	eax, 16
	add	eax, AREA
	mov	[base], eax
	call	all
	inc	ebp
	cmp	ebp, COPIES
	jb	.copy
	mov	dword [base], AREA + 2 * STRIDE
	call	fault
	call	exchanged
	call	all
	call	written
	mov	dword [base], AREA
	call	all
	call	written
	ret

; RUN what: in the copy at `base`, LOOPS rounds.
%macro RUN 1
	mov	eax, [base]
	add	eax, %1 - code
	mov	[where], rax
	USER	user_one
	CAUGHT	EXC_UD, 0, user_one.end
%endmacro
user_one:
	mov	r12d, LOOPS
	xor	ebx, ebx
	call	[where]
	mov	[result], rbx
.end:	ud2

all:
%assign sum 0
%assign i 1
%rep LOOPS
%assign sum sum + i * 3 + FIRST
%if (i & 7) == 0
%assign sum sum + 6
%elif i < 100
%assign sum sum + 1
%endif
%assign i i + 1
%endrep
	RUN	code.sum
	CHECK	[result], sum
	RUN	code.rewritten
	CHECK	[result], LOOPS * 0x100 + LOOPS - LOOPS / 16
	RUN	code.aliased
	CHECK	[result], LOOPS / 16 * (2000 - 1) + (LOOPS - LOOPS / 16) * 1000 - (LOOPS / 8 * 5 - LOOPS / 16)
	RUN	code.moved
	CHECK	[result], LOOPS * (LOOPS + 1) / 2
	RUN	code.by_turns
	CHECK	[result], LOOPS / 2 * 3 + LOOPS / 2 * 70
	RUN	code.through_slot
	CHECK	[result], LOOPS / 2 * 3 + LOOPS / 2 * 70
	RUN	code.fib
	CHECK	[result], 144 * 40
	RUN	code.flags_in
	CHECK	[result], LOOPS / 8 * 3 + LOOPS
	RUN	code.frames
	CHECK	[result], LOOPS * (LOOPS + 1) / 2
	; The same loop, with one function and another one.
%assign n 0
%rep 40
	mov	eax, [base]
%if n & 1
	add	eax, code.three - code
%else
	add	eax, code.seventy - code
%endif
	mov	[argument], rax
	RUN	code.one_register
%if n & 1
	CHECK	[result], LOOPS * 3
%else
	CHECK	[result], LOOPS * 70
%endif
%assign n n + 1
%endrep
	RUN	code.rewrites_callee
	CHECK	[result], LOOPS * 11 + 64 * (LOOPS / 64 * (LOOPS / 64 + 1) / 2)
	RUN	code.rewritten_caller
	CHECK	[result], LOOPS * 1000 + 64 * (LOOPS / 64 * (LOOPS / 64 + 1) / 2)
	ret

; A page that is not there, in the callee, once.
fault:
	mov	dword [argument], code_end	; any memory
	RUN	code.reads
	mov	ecx, 3
.again:
	push	rcx
	mov	eax, [base]
	add	eax, code.reads_once - code
	mov	[where], rax
	USER	user_one
	mov	ebx, [base]
	add	ebx, code.read - code
	CAUGHT	EXC_PF, 4, ebx
	CHECK	[caught_cr2], AREA + 0x100000
	CHECK	[caught_xsp], user_stack_top - 16
	pop	rcx
	dec	ecx
	jnz	.again
	ret

; Another page of callees at this address: by INVLPG, and with all of the address space.
exchanged:
	mov	ebx, [base]
	sub	ebx, AREA
	shr	ebx, 12
	mov	ecx, 6
.again:
	push	rcx
	push	rbx
	test	ecx, 1
	jz	.first
	mov	qword [w_pt + rbx * 8 + 8], PHYS + 0x3000 + ALL
	mov	eax, [base]
	add	eax, 0x1000
	invlpg	[rax]
	RUN	code.sum
	CHECK	[result], sum + LOOPS * (SECOND - FIRST)
	jmp	.next
.first:	mov	qword [w_pt + rbx * 8 + 8], PHYS + 0x1000 + ALL
	mov	rax, cr3
	mov	cr3, rax
	RUN	code.sum
	CHECK	[result], sum
.next:	pop	rbx
	pop	rcx
	dec	ecx
	jnz	.again
	mov	qword [w_pt + rbx * 8 + 8], PHYS + 0x1000 + ALL
	mov	rax, cr3
	mov	cr3, rax
	ret

; The callees' page is written by its physical address.
written:
	mov	ecx, 8
.again:
	push	rcx
	mov	dword [PHYS + code.number - code], SECOND
	RUN	code.sum
	CHECK	[result], sum + LOOPS * (SECOND - FIRST)
	mov	dword [PHYS + code.number - code], FIRST
	RUN	code.sum
	CHECK	[result], sum
	pop	rcx
	dec	ecx
	jnz	.again
	ret

; ---- what is copied: R12 counts rounds down, RBX is the result ----

	align	4096
code:
.sum:
	mov	edi, r12d
	call	.leaf
	add	rbx, rax
	dec	r12d
	jnz	.sum
	ret

.rewritten:
	call	.past
	inc	ebx				; 2 bytes, left out each 16th time
	add	ebx, 0x100
	dec	r12d
	jnz	.rewritten
	ret

; The return address is written through RDI; flags of the callee are wanted behind both.
.aliased:
	lea	rdi, [rsp - 8]
	mov	esi, r12d
	and	esi, 7
	call	.writes
	sbb	rbx, -1000
.aliased_on:
	dec	r12d
	jnz	.aliased
	ret
.aliased_other:
	sbb	rbx, -2000
	jmp	.aliased_on

.moved:
	call	.moves
	pop	rax
	add	rbx, rax
	dec	r12d
	jnz	.moved
	ret

.by_turns:
	lea	rax, [rel .three]
	lea	rcx, [rel .seventy]
	test	r12b, 32
	cmovz	rax, rcx
	call	rax
	add	rbx, rax
	dec	r12d
	jnz	.by_turns
	ret

; The linker's way: CALL of a JMP through memory, which is written in the loop.
.through_slot:
	lea	rax, [rel .three]
	lea	rcx, [rel .seventy]
	test	r12b, 64
	cmovz	rax, rcx
	test	r12b, 63
	jnz	.same_slot
	mov	[rel .slot], rax
.same_slot:
	cmp	r12d, LOOPS
	jne	.slot_set
	mov	[rel .slot], rax
.slot_set:
	call	.stub
	add	rbx, rax
	dec	r12d
	jnz	.through_slot
	ret

.fib:	mov	r12d, 40
.fib_next:
	mov	edi, 12
	call	.fibonacci
	add	rbx, rax
	dec	r12d
	jnz	.fib_next
	ret

.flags_in:
	mov	eax, r12d
	and	eax, 7
	cmp	eax, 3				; CF
	call	.adds
	jz	.flags_never
	dec	r12d
	jnz	.flags_in
	ret
.flags_never:
	add	rbx, 100000
	ret

.frames:
	mov	edi, r12d
	call	.large
	add	rbx, rax
	dec	r12d
	jnz	.frames
	ret

.one_register:
	mov	r13, [argument]
.one_next:
	mov	rax, r13
	call	rax
	add	rbx, rax
	dec	r12d
	jnz	.one_next
	ret

; The callee's number grows by one each 64th round.
.rewrites_callee:
	mov	dword [rel .grows + 1], 11
.rewrites_next:
	test	r12b, 63
	jnz	.rewrites_not
	inc	dword [rel .grows + 1]
.rewrites_not:
	call	.grows
	add	rbx, rax
	dec	r12d
	jnz	.rewrites_next
	ret

; And the callee writes a number of its caller.
.rewritten_caller:
	mov	dword [rel .callers + 3], 1000
.callers_next:
	call	.grows_caller
.callers:
	add	rbx, 0x12345678
	dec	r12d
	jnz	.callers_next
	ret

.reads:
	mov	rdi, [argument]
	call	.read
	dec	r12d
	jnz	.reads
	ret
.reads_once:
	mov	rdi, [argument]
	mov	eax, AREA + 0x100000
	cmp	r12d, 7
	cmove	rdi, rax
	call	.read
	dec	r12d
	jnz	.reads_once
	ret

	align	4096
.callees:
.leaf:	db	0x8d, 0x04, 0x7f		; lea eax, [rdi + rdi * 2]
	db	0x05				; add eax, number
.number: dd	FIRST
	test	dil, 7
	jz	.rare
	cmp	edi, 100
	jb	.small
	ret
.rare:	mov	ecx, 3
.more:	add	eax, 2
	dec	ecx
	jnz	.more
	ret
.small:	inc	eax
	ret

.past:	test	r12b, 15
	jnz	.past_not
	add	qword [rsp], 2
.past_not:
	ret

.writes:
	test	r12b, 15
	jnz	.writes_not
	lea	rax, [rel .aliased_other]
	mov	[rdi], rax
.writes_not:
	cmp	esi, 5
	ret

.moves:	pop	rax
	push	r12
	push	r12
	push	rax
	ret	8

.three:	mov	eax, 3
	ret
.seventy:
	mov	eax, 70
	ret

.stub:	jmp	[rel .slot]

.fibonacci:
	cmp	edi, 2
	jbe	.one
	push	rdi
	dec	edi
	call	.fibonacci
	pop	rdi
	push	rax
	sub	edi, 2
	call	.fibonacci
	pop	rdi
	add	eax, edi
	ret
.one:	mov	eax, 1
	ret

.adds:	adc	rbx, 1
	test	rbx, rbx
	ret

.large:	sub	rsp, 5000
	mov	[rsp], rdi
	mov	[rsp + 4990], rdi
	call	.middle
	add	rsp, 5000
	ret
.middle:
	push	rbp
	mov	rbp, rsp
	mov	rax, [rsp + 16]
	cmp	rax, [rsp + 16 + 4990]
	leave
	ret

.grows:	mov	eax, 11
	ret

.grows_caller:
	test	r12b, 63
	jnz	.grows_not
	inc	dword [rel .callers + 3]
.grows_not:
	ret

.read:	mov	rax, [rdi]
	ret
	align	4096
.slot:	dq	0
code_end:
