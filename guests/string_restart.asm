; String instructions that fault in the middle go on where they stopped; page-crossing accesses and instructions with
; a page that comes and goes; both directions, all sizes (SDM 1 7.3.9).
%define GUEST "string_restart"
%define GUEST_BITS 64
%include "guest.inc"

AREA	equ 0x8000000000
PHYS	equ FREE_MEMORY
PAGES	equ 16
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
section .text

; The hook of page faults: puts the page in, and goes on. Counts.
page_in:
	mov	rax, cr2
	mov	rbx, AREA
	sub	rax, rbx
	cmp	rax, PAGES * 4096
	jae	.strange
	shr	rax, 12
	inc	dword [faults]
	bts	[faulted], rax
	lea	rbx, [rax + 1]
	shl	rax, 12
	add	rax, PHYS + ALL
	mov	[t_pt + rbx * 8 - 8], rax
	ret
.strange:
	inc	dword [strange]
	mov	qword [rdi + FRAME.ip], give_up
	ret
give_up:
	FAILED	"a page fault outside the area"
	jmp	guest_exit

; All pages of the area go.
page_out:
	push	rdi
	push	rax
	push	rcx
	mov	edi, t_pt
	xor	eax, eax
	mov	ecx, 512
	rep	stosq
	mov	rax, cr3
	mov	cr3, rax
	mov	dword [faults], 0
	mov	qword [faulted], 0
	pop	rcx
	pop	rax
	pop	rdi
	ret

guest_main:
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	GATE	EXC_PF, STUB(EXC_PF), 0x8e, SEL_CODE, 3 ; the stack is tested too
	HOOK	EXC_PF, page_in
	call	moves
	call	others
	call	partial
	call	crossing
	HOOK	EXC_PF, 0
	CHECK32	[strange], 0
	ret

; Fills what is behind the area with a pattern.
fill:
	mov	edi, PHYS
	mov	eax, 1
.next:
	mov	[rdi], al
	imul	eax, eax, 1103515245
	add	eax, 12345
	ror	eax, 3
	inc	edi
	cmp	edi, PHYS + PAGES * 4096
	jb	.next
	ret

; COMPARE_RANGE offset a, offset b, length: in physical memory
%macro SAME 3
	mov	esi, PHYS + (%1)
	mov	edi, PHYS + (%2)
	mov	ecx, %3
	cld
	repe	cmpsb
	HOLDS	e, "bytes that were moved"
%endmacro

moves:
	; Upwards, from page 0 to page 8, over three pages.
%macro UPWARDS 2			; instruction, size
	call	fill
	call	page_out
	mov	rsi, AREA + 0x7f8
	mov	rdi, AREA + 0x8ff0
	mov	ecx, 0x2000 / %2
	rep	%1
	CHECK	rcx, 0
	mov	rax, AREA + 0x27f8
	CHECK	rsi, rax
	mov	rax, AREA + 0xaff0
	CHECK	rdi, rax
	CHECK32	[faults], 6
	SAME	0x7f8, 0x8ff0, 0x2000
%endmacro
	UPWARDS	movsb, 1
	UPWARDS	movsw, 2
	UPWARDS	movsd, 4
	UPWARDS	movsq, 8
	; Downwards.
%macro DOWNWARDS 2
	call	fill
	call	page_out
	mov	rsi, AREA + 0x27f8 - %2
	mov	rdi, AREA + 0xaff0 - %2
	mov	ecx, 0x2000 / %2
	std
	rep	%1
	cld
	CHECK	rcx, 0
	mov	rax, AREA + 0x7f8 - %2
	CHECK	rsi, rax
	mov	rax, AREA + 0x8ff0 - %2
	CHECK	rdi, rax
	CHECK32	[faults], 6
	SAME	0x7f8, 0x8ff0, 0x2000
%endmacro
	DOWNWARDS movsb, 1
	DOWNWARDS movsw, 2
	DOWNWARDS movsd, 4
	DOWNWARDS movsq, 8
	; Elements that cross pages.
	call	fill
	call	page_out
	mov	rsi, AREA + 0x0ffd
	mov	rdi, AREA + 0x8fff
	mov	ecx, 0x300
	rep	movsq
	CHECK	rcx, 0
	SAME	0x0ffd, 0x8fff, 0x1800
	; Overlap: MOVSB upwards by one smears the first byte, whatever a fast copy would do.
	call	fill
	call	page_out
	mov	byte [PHYS + 0xf00], 0x5a
	mov	rsi, AREA + 0xf00
	mov	rdi, AREA + 0xf01
	mov	ecx, 0x1200
	rep	movsb
	mov	edi, PHYS + 0xf00
	mov	al, 0x5a
	mov	ecx, 0x1201
	repe	scasb
	HOLDS	e, "overlapping movsb"
	; By three, with doublewords over one another.
	mov	dword [PHYS + 0x100], 0x44332211
	mov	byte [PHYS + 0x103], 0x99
	mov	rsi, AREA + 0x100
	mov	rdi, AREA + 0x103
	mov	ecx, 3
	rep	movsd
	CHECK32	[PHYS + 0x103], 0x99332211
	CHECK_BITS [PHYS + 0x107], 0xffffff, 0x993322
	ret

others:
	; STOS, LODS, SCAS, CMPS.
	call	fill
	call	page_out
	mov	rdi, AREA + 0x1ff8
	mov	rax, 0x0123456789abcdef
	mov	ecx, 0x400
	rep	stosq
	CHECK	rcx, 0
	CHECK32	[faults], 3
	CHECK	[PHYS + 0x1ff8], rax
	CHECK	[PHYS + 0x3ff0], rax
	call	page_out
	mov	rsi, AREA + 0xffc
	mov	ecx, 0x800
	mov	dword [PHYS + 0x2ff8], 0x31415926
	rep	lodsd
	CHECK	rcx, 0
	CHECK	rax, 0x31415926
	call	page_out
	mov	edi, PHYS + 0x4000
	mov	ecx, 0x2000
	mov	al, 7
	rep	stosb
	mov	byte [PHYS + 0x5123], 8
	mov	rdi, AREA + 0x4000
	mov	ecx, 0x2000
	repe	scasb
	HOLDS	ne, "scasb finds"
	mov	rax, AREA + 0x5124
	CHECK	rdi, rax
	CHECK	rcx, 0x2000 - 0x1124
	CHECK32	[faults], 2
	call	page_out
	mov	edi, PHYS + 0x6000
	mov	esi, PHYS + 0x4000
	mov	ecx, 0x2000
	rep	movsb
	mov	byte [PHYS + 0x7fff], 0
	mov	rsi, AREA + 0x4000
	mov	rdi, AREA + 0x6000
	mov	ecx, 0x2000
	repe	cmpsb
	HOLDS	ne, "cmpsb finds"
	CHECK	rcx, 0
	CHECK32	[faults], 4
	; OUTS and INS.
	call	page_out
	mov	rsi, AREA + 0xffe
	mov	edx, 0x80
	mov	ecx, 4
	rep	outsb
	CHECK	rcx, 0
	CHECK32	[faults], 2
	mov	rdi, AREA + 0x1fff
	mov	ecx, 2
	rep	insb
	CHECK	rcx, 0
	; 32-bit addresses: the counters are 32 bits wide, and their upper halves are cleared only by a write.
	mov	rcx, 0x500000002
	mov	rsi, 0x500000000 + PHYS
	mov	rdi, 0x600000000 + PHYS + 0x100
	a32 rep	movsb
	CHECK	rcx, 0
	CHECK	rsi, PHYS + 2
	; A count of zero touches nothing.
	call	page_out
	xor	ecx, ecx
	mov	rsi, AREA
	mov	rdi, AREA + 0x1000
	rep	movsb
	repe	cmpsb
	CHECK32	[faults], 0
	ret

; What is done before the fault stays done, and the registers say so.
partial:
	HOOK	EXC_PF, 0
	call	fill
	mov	qword [t_pt], PHYS + ALL
	mov	qword [t_pt + 8], 0
	mov	qword [t_pt + 16], PHYS + 0x2000 + ALL
	mov	rax, cr3
	mov	cr3, rax
	mov	rsi, AREA + 0x2000
	mov	rdi, AREA + 0xff0
	mov	ecx, 0x20
	mov	rbx, AREA + 0x1000
	FAULT_PF PF_W, rbx, rep movsb
	CHECK	rdi, rbx
	CHECK	rcx, 0x10
	SAME	0x2000, 0xff0, 0x10
	; Reads fault first: neither side moves for the element that faults.
	mov	rsi, AREA + 0xfff
	mov	rdi, AREA + 0x2000
	mov	ecx, 4
	FAULT_PF 0, rbx, rep movsw
	CHECK	rcx, 4
	mov	rax, AREA + 0xfff
	CHECK	rsi, rax
	; CMPS: flags of the last comparison that was made.
	mov	byte [PHYS + 0xfff], 1
	mov	byte [PHYS + 0x2000], 1
	mov	rsi, AREA + 0xfff
	mov	rdi, AREA + 0x2000
	mov	ecx, 4
	FAULT_PF 0, rbx, repe cmpsb
	CHECK	rcx, 3
	CHECK	rsi, rbx
	; A user program does the same.
	mov	rsi, AREA + 0x2000
	mov	rdi, AREA + 0xff0
	mov	ecx, 0x20
	USER_FAULT_PF PF_W | PF_U, rbx, rep movsb
	CHECK	rcx, 0x10
	HOOK	EXC_PF, page_in
	ret

; Accesses and instructions across pages: both pages come in, one after the other, and the result is right.
crossing:
	call	fill
	call	page_out
	mov	rbx, AREA + 0x1000
	mov	eax, 0x11223344
	mov	[rbx - 1], eax
	CHECK32	[faults], 2
	CHECK32	[PHYS + 0xfff], eax
	call	page_out
	add	dword [rbx - 2], 1
	call	page_out
	lock add dword [rbx - 3], 1
	CHECK32	[faults], 2
	call	page_out
	push	qword [rbx - 4]
	pop	rax
	CHECK	rax, [PHYS + 0xffc]
	call	page_out
	movups	xmm0, [rbx - 8]
	movups	[rbx + 0xff8], xmm0
	CHECK32	[faults], 3
	mov	rax, [PHYS + 0xff8]
	CHECK	rax, [PHYS + 0x1ff8]
	; CALL onto a stack that crosses.
	call	page_out
	mov	[saved], rsp
	lea	rsp, [rbx + 4]
	call	.called
.back:
	mov	rsp, [saved]
	CHECK32	[faults], 2
	CHECK	[PHYS + 0xffc], .back
	; An instruction at every offset before a page's end.
	xor	ebp, ebp
.next:
	mov	edi, PHYS + 0x3000 - 12
	add	edi, ebp
	mov	esi, .code
	mov	ecx, .code_end - .code
	rep	movsb
	call	page_out
	lea	rdx, [rbx + 0x2000 - 12 + rbp]
	call	rdx
	mov	rcx, 0x1122334455667788
	CHECK	rax, rcx
	cmp	ebp, 1
	jbe	.one_page
	CHECK32	[faults], 2
.one_page:
	inc	ebp
	cmp	ebp, 12
	jb	.next
	ret
.called:
	ret
.code:	mov	rax, 0x1122334455667788
	ret
.code_end:

section .data
	align	8
faulted: dq 0
saved:	dq 0
faults:	dd 0
strange: dd 0
