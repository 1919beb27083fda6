; User code that is run at several addresses, with instructions that cross into another page: an addition, a conditional
; jump and a call; and with a call and a jump that lead there. The second page is exchanged at one of the addresses, written,
; taken away, and all of it is run in an address space that was just loaded (SDM 3A 4.10, 11.6).
%define GUEST "floating"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x40000000
STRIDE	equ 0x10000
PHYS	equ FREE_MEMORY
COPIES	equ 9
ROUNDS	equ 400
KINDS	equ 4
ONE	equ 2000			; rounds at one address
%define ALL (PTE_P | PTE_W | PTE_U)
; Kind k is at pages 3k and 3k + 1 of each copy; so it is in physical memory, and at 3k + 2 another second page.
%define THREE (AREA + 3 * STRIDE + 0x9300)
%define PAGE(k, n) (PHYS + ((k) * 3 + (n)) * 4096)

; Copy 3's second pages become number %1 of their kinds'. %2: by INVLPG; or by CR3.
%macro SECOND_PAGES 2
%assign k 0
%rep KINDS
	mov	qword [w_pt + 3 * 128 + k * 24 + 8], PAGE(k, %1) + ALL
%if %2
	invlpg	[AREA + 3 * STRIDE + (k * 3 + 1) * 4096]
%endif
%assign k k + 1
%endrep
%if !%2
	mov	rax, cr3
	mov	cr3, rax
%endif
%endmacro

; Copy 3 is called again and again, and returns %1 each time.
%macro RUN_THREE 1
	mov	qword [sums], 0
	USER	THREE
	CAUGHT	EXC_UD, 0, THREE + user_three.end - user_three
	CHECK	[sums], ONE * (%1)
%endmacro

section .bss
	alignb	4096
w_pt:	resb	4096
sums:	resq	COPIES * KINDS
section .text

guest_main:
	mov	qword [pd + (AREA >> 21) * 8], w_pt + ALL
	mov	rdi, PHYS
	mov	ecx, KINDS * 3 * 4096 / 8
	mov	rax, 0xcccccccccccccccc
	rep	stosq
	; lea eax, [rcx + rcx * 2]; add eax, 20001h across, whose upper half is the second page's; ret
	mov	dword [PAGE(0, 0) + 0xff0], 0xeb49048d
	mov	byte [PAGE(0, 0) + 0xff4], 8		; jmp to the end
	mov	dword [PAGE(0, 0) + 0xffc], 0x00010590
	mov	dword [PAGE(0, 1)], 0xc30002
	mov	dword [PAGE(0, 2)], 0xc30003
	; mov eax, 1; test cl, 1; jnz across to 40h of the second page: add eax, 6 (8); ret
	mov	dword [PAGE(1, 0) + 0xff0], 0x000001b8
	mov	dword [PAGE(1, 0) + 0xff4], 0x01c1f600
	mov	word [PAGE(1, 0) + 0xff8], 0x02eb
	mov	dword [PAGE(1, 0) + 0xffc], 0x003e850f
	mov	dword [PAGE(1, 1)], 0xc30000
	mov	dword [PAGE(1, 2)], 0xc30000
	mov	dword [PAGE(1, 1) + 0x40], 0xc306c083
	mov	dword [PAGE(1, 2) + 0x40], 0xc308c083
	; call across to 80h of the second page: lea eax, [rcx + 100 (101)]; ret; there: add eax, 5; ret
	mov	dword [PAGE(2, 0) + 0xffc], 0x7fe8
%assign n 1
%rep 2
	mov	dword [PAGE(2, n)], 0x05c08300
	mov	byte [PAGE(2, n) + 4], 0xc3
	mov	dword [PAGE(2, n) + 0x80], 0xc364418d + ((n - 1) << 16)
%assign n n + 1
%endrep
	; call to 80h of the second page: lea eax, [rcx + 100 (101)]; ret; add eax, 7; jmp to 40h: lea eax, [rax + 2 (3)]; ret
	mov	dword [PAGE(3, 0) + 0x200], 0x000e7be8
	mov	dword [PAGE(3, 0) + 0x204], 0x07c08300
	mov	dword [PAGE(3, 0) + 0x208], 0x000e33e9
	mov	byte [PAGE(3, 0) + 0x20c], 0
%assign n 1
%rep 2
	mov	dword [PAGE(3, n) + 0x80], 0xc364418d + ((n - 1) << 16)
	mov	dword [PAGE(3, n) + 0x40], 0xc302408d + ((n - 1) << 16)
%assign n n + 1
%endrep
	mov	rsi, user_three
	mov	rdi, PAGE(3, 0) + 0x300
	mov	ecx, user_three.end + 2 - user_three
	rep	movsb
	xor	ecx, ecx
.map:	mov	edx, ecx
	shl	edx, 7					; 16 pages
%assign k 0
%rep KINDS
	mov	qword [w_pt + rdx + k * 24], PAGE(k, 0) + ALL
	mov	qword [w_pt + rdx + k * 24 + 8], PAGE(k, 1) + ALL
%assign k k + 1
%endrep
	inc	ecx
	cmp	ecx, COPIES
	jb	.map
	mov	rax, cr3
	mov	cr3, rax
	mov	r12d, 3
.again:
	call	run
	mov	r13d, -1
	call	compare
	; Copy 3 has other second pages.
	mov	r14d, 8					; so often that it is not made for what is there
.three:	RUN_THREE 112
	SECOND_PAGES 2, 1
	RUN_THREE 114
	SECOND_PAGES 1, 0
	RUN_THREE 112
	SECOND_PAGES 2, 0
	RUN_THREE 114
	SECOND_PAGES 1, 1
	dec	r14d
	jnz	.three
	SECOND_PAGES 2, 1
	call	run
	mov	r13d, 3
	call	compare
	; All is looked for again.
	mov	rax, cr3
	mov	cr3, rax
	call	run
	call	compare
	; The second page is not there at copy 5.
	btr	qword [w_pt + 5 * 128 + 8], 0
	invlpg	[AREA + 5 * STRIDE + 4096]
	mov	rax, AREA + 5 * STRIDE + 0xff0
	mov	[where], rax
	mov	ecx, 5
	USER	user_one
	CAUGHT	EXC_PF, 14h, AREA + 5 * STRIDE + 0xffd
	CHECK	[caught_cr2], AREA + 5 * STRIDE + 0x1000
	bts	qword [w_pt + 5 * 128 + 8], 0
	; The second pages of most are written, by their physical address, and written back.
	inc	byte [PAGE(0, 1)]
	add	dword [imm], 0x10000
	call	run
	call	compare
	dec	byte [PAGE(0, 1)]
	sub	dword [imm], 0x10000
	call	run
	call	compare
	RUN_THREE 114
	inc	byte [PAGE(3, 2) + 0x82]
	RUN_THREE 115
	inc	byte [PAGE(3, 2) + 0x42]
	RUN_THREE 116
	dec	byte [PAGE(3, 2) + 0x82]
	dec	byte [PAGE(3, 2) + 0x42]
	SECOND_PAGES 1, 1
	dec	r12d
	jnz	.again
	ret

run:
	mov	rdi, sums
	mov	ecx, COPIES * KINDS
	xor	eax, eax
	rep	stosq
	USER	user_all
	CAUGHT	EXC_UD, 0, user_all.end
	ret

; Copy r13d has the third pages.
compare:
	xor	ecx, ecx
.copy:	lea	edx, [rcx * KINDS]
	mov	eax, [imm]
	mov	ebx, 0x30001
	cmp	ecx, r13d
	cmove	eax, ebx
	lea	eax, [rax + rcx]
	lea	eax, [rax + rcx * 2]
	imul	rax, rax, ROUNDS
	mov	rsi, [sums + rdx * 8]
	CHECK	rsi, rax
	mov	eax, 7
	mov	ebx, 9
	cmp	ecx, r13d
	cmove	eax, ebx
	mov	ebx, 1
	test	cl, 1
	cmovz	eax, ebx
	imul	rax, rax, ROUNDS
	mov	rsi, [sums + rdx * 8 + 8]
	CHECK	rsi, rax
	lea	eax, [rcx + 105]
	lea	ebx, [rcx + 106]
	cmp	ecx, r13d
	cmove	eax, ebx
	imul	rax, rax, ROUNDS
	mov	rsi, [sums + rdx * 8 + 16]
	CHECK	rsi, rax
	lea	eax, [rcx + 109]
	lea	ebx, [rcx + 111]
	cmp	ecx, r13d
	cmove	eax, ebx
	imul	rax, rax, ROUNDS
	mov	rsi, [sums + rdx * 8 + 24]
	CHECK	rsi, rax
	inc	ecx
	cmp	ecx, COPIES
	jb	.copy
	ret

section .data
	align	8
where:	dq	0
imm:	dd	0x20001
section .text

user_one:
	call	[where]
	ud2

user_all:
	mov	ebp, ROUNDS
.round:	xor	ecx, ecx
.copy:	lea	edx, [rcx * KINDS]
	mov	edi, ecx
	shl	edi, 16
	lea	rbx, [AREA + rdi + 0xff0]
	call	rbx
	add	[sums + rdx * 8], rax
	lea	rbx, [AREA + rdi + 0x3ff0]
	call	rbx
	add	[sums + rdx * 8 + 8], rax
	lea	rbx, [AREA + rdi + 0x6ffc]
	call	rbx
	add	[sums + rdx * 8 + 16], rax
	lea	rbx, [AREA + rdi + 0x9200]
	call	rbx
	add	[sums + rdx * 8 + 24], rax
	inc	ecx
	cmp	ecx, COPIES
	jb	.copy
	dec	ebp
	jnz	.round
.end:	ud2

; Copied to where pages are small, as all are that code is run in then.
user_three:
	mov	ebp, ONE
	mov	ecx, 3
	mov	rbx, AREA + 3 * STRIDE + 0x9200
.round:	call	rbx
	add	[sums], rax
	dec	ebp
	jnz	.round
.end:	ud2
