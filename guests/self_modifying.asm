; Code that is written while it runs: the next instruction, the next iteration, other pages, aliases, by string
; instructions, across pages, and by a change of the mapping (SDM 3A 8.1.3, 11.6).
%define GUEST "self_modifying"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x8000000000
PHYS	equ FREE_MEMORY
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
section .text

guest_main:
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	; Pages 0 and 1 are two in a row; 2 is page 0 again; 3 is another page.
	mov	qword [t_pt], PHYS + ALL
	mov	qword [t_pt + 8], PHYS + 0x1000 + ALL
	mov	qword [t_pt + 16], PHYS + ALL
	mov	qword [t_pt + 24], PHYS + 0x3000 + ALL
	mov	rax, cr3
	mov	cr3, rax
	call	next_instruction
	call	loops
	call	aliases
	call	remapped
	call	strings
	call	across
%ifndef ON_BOCHS
	call	across_hot
%endif
	call	generated
	call	stack_code
	ret

; The very next instruction: seen at once, as processors promise when it is written through the same address.
next_instruction:
	mov	byte [.patched + 1], 1
	jmp	.go
.go:	mov	byte [.patched + 1], 0x55
.patched:
	mov	al, 1
	CHECK_BITS eax, 0xff, 0x55
	; In the middle of a basic block, an instruction that was executed before.
	mov	ecx, 4
	xor	ebx, ebx
.again:
	mov	[.immediate + 2], cl
.immediate:
	add	ebx, 100
	dec	ecx
	jnz	.again
	CHECK	rbx, 1 + 2 + 3 + 4
	; From one opcode to another.
	mov	eax, 5
	mov	word [.swap], 0xc0ff		; INC EAX
.swap:	nop
	nop
	CHECK	rax, 6
	mov	word [.swap], 0x9090
	; The write makes the writer itself (which went on) different the next time.
	mov	ecx, 3
.self:	mov	byte [.self_value], cl
	db	0xb0				; MOV AL, imm8
.self_value:
	db	0
	CHECK_BITS eax, 0xff, ecx
	dec	ecx
	jnz	.self
	ret

; A function that is called often, rewritten between calls.
loops:
	mov	edi, PHYS
	mov	byte [rdi], 0xb8		; MOV EAX, imm32; RET
	mov	byte [rdi + 5], 0xc3
	mov	ecx, 500
	xor	ebx, ebx
.next:
	mov	[rdi + 1], ecx
	call	rdi
	add	ebx, eax
	dec	ecx
	jnz	.next
	CHECK	rbx, 500 * 501 / 2
	; Hot first, then changed once.
	mov	dword [rdi + 1], 7
	mov	ecx, 20000
	xor	ebx, ebx
.hot:	call	rdi
	add	ebx, eax
	loop	.hot
	CHECK	rbx, 7 * 20000
	mov	dword [rdi + 1], 9
	call	rdi
	CHECK	rax, 9
	; A loop that patches itself to leave.
	mov	ecx, 1000
.top:	dec	ecx
	cmp	ecx, 100
	jne	.keep
	mov	word [.jump], 0x9090
.keep:	test	ecx, ecx
.jump:	jnz	.top
	CHECK	rcx, 100
	ret

; The same physical page at two addresses.
aliases:
	mov	rsi, AREA
	mov	rdi, AREA + 0x2000
	mov	byte [rsi], 0xb8
	mov	byte [rsi + 5], 0xc3
	mov	ecx, 50
.next:
	mov	[rdi + 1], ecx
	mfence
	call	rsi
	CHECK	rax, rcx
	dec	ecx
	jnz	.next
	; And through the identity map.
	mov	dword [PHYS + 1], 0x777
	call	rsi
	CHECK	rax, 0x777
	call	rdi
	CHECK	rax, 0x777
	ret

; Another page at the same address.
remapped:
	mov	rsi, AREA
	mov	byte [PHYS + 0x3000], 0xb8
	mov	dword [PHYS + 0x3001], 0x3333
	mov	byte [PHYS + 0x3005], 0xc3
	mov	dword [PHYS + 1], 0x1111
	mov	ecx, 20
.next:
	call	rsi
	CHECK	rax, 0x1111
	mov	qword [t_pt], PHYS + 0x3000 + ALL
	invlpg	[rsi]
	call	rsi
	CHECK	rax, 0x3333
	mov	qword [t_pt], PHYS + ALL
	invlpg	[rsi]
	dec	ecx
	jnz	.next
	; No longer executable.
	mov	rax, PHYS + ALL + PTE_NX
	mov	[t_pt], rax
	invlpg	[rsi]
	CATCH	.nx
	call	rsi
.nx:
	CAUGHT	EXC_PF, PF_P | PF_I
	mov	qword [t_pt], PHYS + ALL
	invlpg	[rsi]
	; No longer there.
	mov	qword [t_pt], 0
	invlpg	[rsi]
	CATCH	.absent
	call	rsi
.absent:
	CAUGHT	EXC_PF, PF_I
	mov	qword [t_pt], PHYS + ALL
	invlpg	[rsi]
	call	rsi
	CHECK	rax, 0x1111
	ret

; Code that a string instruction writes, or the FPU, or SSE, or PUSH, or a locked instruction.
strings:
	mov	rdx, AREA
	mov	ecx, 10
.next:
	push	rcx
	mov	[.source + 1], ecx
	mov	rsi, .source
	mov	rdi, rdx
	mov	ecx, 6
	rep	movsb
	mov	ecx, [rsp]
	call	rdx
	CHECK	rax, rcx
	mov	dword [.source + 1], 0x100
	movq	xmm0, [.source]
	movq	[rdx], xmm0
	call	rdx
	CHECK	rax, 0x100
	lock inc dword [rdx + 1]
	call	rdx
	CHECK	rax, 0x101
	fild	dword [.number]
	fistp	dword [rdx + 1]
	call	rdx
	CHECK	rax, 12345
	mov	rbx, rsp
	lea	rsp, [rdx + 9]
	push	qword 0x22			; at 1 to 8
	mov	rsp, rbx
	mov	byte [rdx + 5], 0xc3
	call	rdx
	CHECK	rax, 0x22
	mov	rax, 0x1234
	xchg	[rdx + 1], eax
	call	rdx
	CHECK	rax, 0x1234
	pop	rcx
	dec	ecx
	jnz	.next
	ret
section .data
	align	8
.source: db 0xb8, 0, 0, 0, 0, 0xc3, 0, 0
.number: dd 12345
section .text

; An instruction across two pages, whose halves change one after the other.
across:
	mov	rdx, AREA + 0xffe
	mov	byte [rdx], 0xb8
	mov	byte [rdx + 5], 0xc3
	mov	ecx, 20
.next:
	mov	dword [rdx + 1], 0x01010101
	call	rdx
	CHECK	rax, 0x01010101
	mov	byte [rdx + 1], cl		; in the first page
	call	rdx
	mov	ebx, 0x01010100
	mov	bl, cl
	CHECK	rax, rbx
	mov	byte [rdx + 4], cl		; in the second
	call	rdx
	shl	ecx, 24
	and	ebx, 0x00ffffff
	or	ebx, ecx
	shr	ecx, 24
	CHECK	rax, rbx
%ifndef ON_BOCHS			; it keeps the decoded instruction
	mov	qword [t_pt + 8], PHYS + 0x3000 + ALL	; the second half comes from another page
	mov	dword [PHYS + 0x3000], 0xc3665544
	invlpg	[rdx + 2]
	call	rdx
	mov	ebx, 0x66554400
	mov	bl, cl
	CHECK	rax, rbx
	mov	qword [t_pt + 8], PHYS + 0x1000 + ALL
	invlpg	[rdx + 2]
%endif
	dec	ecx
	jnz	.next
	ret

; Much code, generated, run, and overwritten: as a compiler at run time does it.
generated:
	mov	ebp, 8
.again:
	mov	edi, PHYS + 0x10000
	mov	ecx, 2000
.emit:
	mov	byte [rdi], 0x05		; ADD EAX, imm32
	mov	[rdi + 1], ebp
	add	edi, 5
	loop	.emit
	mov	byte [rdi], 0xc3
	xor	eax, eax
	mov	ebx, PHYS + 0x10000
	call	rbx
	imul	edx, ebp, 2000
	CHECK	rax, rdx
	dec	ebp
	jnz	.again
	ret

; Code on the stack, next to data that is written all the time.
stack_code:
	sub	rsp, 64
	mov	byte [rsp], 0x8b		; MOV EAX, [RSI]; INC DWORD [RSI]; RET
	mov	byte [rsp + 1], 0x06
	mov	word [rsp + 2], 0x06ff
	mov	byte [rsp + 4], 0xc3
	lea	rsi, [rsp + 16]
	mov	dword [rsi], 0
	mov	ecx, 3000
	mov	rbx, rsp
.next:	call	rbx
	dec	ecx
	jnz	.next
	CHECK	rax, 2999
	add	rsp, 64
	ret

; Hot code across two pages whose second half changes by mapping and by writes elsewhere; flags live on into it.
;	STC; CMC; STC; <op> EAX, imm32 over the boundary; DEC ECX; JNZ; RET
across_hot:
	mov	rdx, AREA + 0xffb
	mov	byte [rdx], 0xf9		; STC
	mov	byte [rdx + 1], 0xf5		; CMC
	mov	byte [rdx + 2], 0xf9		; STC
	mov	byte [rdx + 3], 0x81		; ADC EAX, imm32: the number is in the second page
	mov	byte [rdx + 4], 0xd0
	mov	dword [rdx + 5], 0x10
	mov	byte [rdx + 9], 0xff		; DEC ECX
	mov	byte [rdx + 10], 0xc9
	mov	byte [rdx + 11], 0x75		; JNZ back to STC
	mov	byte [rdx + 12], 0xf3
	mov	byte [rdx + 13], 0xc3
	; The same at another page, with another number.
	mov	rsi, PHYS + 0x3000
	mov	dword [rsi], 0x100
	mov	dword [rsi + 4], 0xf375c9ff
	mov	byte [rsi + 8], 0xc3
	mov	r8d, 30
.next:
	xor	eax, eax
	mov	ecx, 300
	call	rdx
	CHECK	rax, 300 * 0x11
	mov	qword [t_pt + 8], PHYS + 0x3000 + ALL
	invlpg	[rdx + 5]
	xor	eax, eax
	mov	ecx, 300
	call	rdx
	CHECK	rax, 300 * 0x101
	mov	qword [t_pt + 8], PHYS + 0x1000 + ALL
	invlpg	[rdx + 5]
	; Elsewhere in the second page, and in the first: the code is the same.
	mov	[PHYS + 0x1800], r8d
	xor	eax, eax
	mov	ecx, 300
	call	rdx
	CHECK	rax, 300 * 0x11
	mov	[PHYS + 0x800], r8d
	xor	eax, eax
	mov	ecx, 300
	call	rdx
	CHECK	rax, 300 * 0x11
	dec	r8d
	jnz	.next
	; The page behind is gone: the fault is the instruction's, with what came before it done.
	mov	qword [t_pt + 8], 0
	invlpg	[rdx + 5]
	xor	eax, eax
	mov	ecx, 5
	CATCH	.absent
	call	rdx
.absent:
	CAUGHT	EXC_PF, PF_I
	mov	qword [t_pt + 8], PHYS + 0x1000 + ALL
	invlpg	[rdx + 5]
	; A jump over the boundary, both ways.
	mov	rdx, AREA + 0xffd
	mov	byte [rdx - 2], 0xff		; DEC ECX
	mov	byte [rdx - 1], 0xc9
	mov	byte [rdx], 0x0f		; JNZ rel32: back to it
	mov	byte [rdx + 1], 0x85
	mov	dword [rdx + 2], -8
	mov	byte [rdx + 6], 0xc3
	mov	ecx, 1000
	lea	rbx, [rdx - 2]
	call	rbx
	CHECK	rcx, 0
	mov	byte [rdx + 1], 0x84		; JZ
	mov	ecx, 1000
	call	rbx
	CHECK	rcx, 999
	; A call with padding, as of __tls_get_addr.
	mov	rdx, AREA + 0x800
	mov	dword [rdx], 0xe8486666		; CALL rel32; DEC ECX; JNZ; RET; and what is called: INC EAX; RET
	mov	dword [rdx + 4], 5
	mov	dword [rdx + 8], 0xf475c9ff
	mov	byte [rdx + 12], 0xc3
	mov	word [rdx + 13], 0xc0ff
	mov	byte [rdx + 15], 0xc3
	xor	eax, eax
	mov	ecx, 500
	call	rdx
	CHECK	rax, 500
	ret
