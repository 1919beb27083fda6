; 64-bit code and compatibility mode side by side: the same bytes at the same addresses called by both, over and over, and
; what 32-bit code must leave alone. Flat segments: a translator keeps code of both modes, and must not mix them up.
%define GUEST "compatibility"
%define GUEST_BITS 64
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)
BASE	equ	FREE_MEMORY

; In 64-bit code INC RAX, in 32-bit code DEC EAX, INC EAX; then a jump table's entry, which has the code's address width.
section .text
both:	db	0x48, 0xff, 0xc0	; inc rax | dec eax; inc eax
	db	0x48			; rex | dec eax
	ret

guest_main:
	mov	eax, SEL_DATA
	mov	ds, eax
	mov	es, eax
	mov	dword [pointer32], code32
	mov	word [pointer32 + 4], SEL_CODE32
	mov	dword [far_call], stub32
	mov	word [far_call + 4], SEL_CODE32
	call	same_bytes
	call	upper_halves
	call	segment_bases
	call	stacks
	call	user_level
	ret

same_bytes:
	mov	ecx, 300
	xor	eax, eax
	xor	ebx, ebx
	mov	edi, both
.next:	call	rdi			; + 1
	add	ebx, eax
	call	far dword [far_call]	; - 1
	sub	ebx, eax
	dec	ecx
	jnz	.next
	CHECK	rax, 0
	CHECK	rbx, 300
	ret

upper_halves:
	mov	r8, 0x1122334455667788
	mov	r9, 0x99aabbccddeeff00
	mov	r10, r8
	mov	r11, r9
	mov	r12, r8
	mov	r13, r9
	mov	r14, r8
	mov	r15, r9
	movq	xmm15, r9
	xor	edx, edx
	mov	ecx, 100
	mov	edi, work32
.next:	call	far dword [far_call]
	dec	ecx
	jnz	.next
	CHECK32	edx, 100 * 7
	mov	rax, 0x1122334455667788
	CHECK	r8, rax
	CHECK	r10, rax
	CHECK	r12, rax
	CHECK	r14, rax
	mov	rax, 0x99aabbccddeeff00
	CHECK	r9, rax
	CHECK	r11, rax
	CHECK	r13, rax
	CHECK	r15, rax
	movq	rbx, xmm15
	CHECK	rbx, rax
	ret

; The base of FS has 64 bits in 64-bit code, and 32 in 32-bit code.
segment_bases:
	mov	dword [BASE], 0x600df00d
	mov	dword [BASE + 0x1000], 0x12121212
	mov	eax, SEL_DATA
	mov	fs, eax
	mov	ebp, 3
.again:	WRMSR_	MSR_FS_BASE, BASE, 1
	xor	eax, eax
	mov	edi, read_fs32
	call	far dword [far_call]
	CHECK	rax, 0x600df00d
	WRMSR_	MSR_FS_BASE, BASE + 0x1000, 0
	call	far dword [far_call]
	CHECK	rax, 0x12121212
	mov	rax, [fs:0]
	CHECK32	eax, 0x12121212
	dec	ebp
	jnz	.again
	; A null selector's base counts in 64-bit code only.
	xor	eax, eax
	mov	fs, eax
	WRMSR_	MSR_FS_BASE, BASE, 0
	mov	eax, [fs:0]
	CHECK32	eax, 0x600df00d
	mov	edi, read_fs32
	CATCH	.fault
	call	far dword [far_call]
.fault:	CAUGHT	EXC_GP, 0, read_fs32
	ret

; A limit in DS that only 32-bit code knows.
stacks:
	SET_DESCRIPTOR S(0), 0, 0xfff, 0x4093
	mov	dword [BASE + 0x40], 5
	mov	edi, read_ds32
	mov	ebp, 3
.again:	mov	eax, SEL_DATA
	mov	ds, eax
	call	far dword [far_call]
	CHECK	rax, 5
	mov	eax, S(0)
	mov	ds, eax
	CHECK32	[BASE + 0x40], 5	; 64-bit code reads on
	CATCH	.fault
	call	far dword [far_call]
.fault:	CAUGHT	EXC_GP, 0, read_ds32
	dec	ebp
	jnz	.again
	mov	eax, SEL_DATA
	mov	ds, eax
	ret

user_level:
	mov	eax, SEL_USER_DATA
	mov	ds, eax
	mov	es, eax
	mov	ebp, 20
.again:	mov	ecx, 50
	xor	eax, eax
	mov	edi, both
	USER32	.loop32
	CAUGHT	EXC_UD, 0, .loop32_end
	CHECK	rax, 0xffffffce		; - 50
	mov	ecx, 50
	xor	eax, eax
	USER	.loop64
	CAUGHT	EXC_UD, 0, .loop64_end
	CHECK	rax, 50
	dec	ebp
	jnz	.again
	ret
.loop64:
	call	rdi
	dec	ecx
	jnz	.loop64
.loop64_end:
	ud2
bits 32
.loop32:
	call	edi
	dec	ecx
	jnz	.loop32
.loop32_end:
	ud2

; Called far from 64-bit code: calls EDI.
stub32:	call	edi
	retf
code32:	ret
work32:	push	dword 7
	add	edx, [esp]
	inc	esi
	inc	ebx
	inc	ebp
	dec	ebp
	mov	[scratch], eax
	xchg	eax, [scratch]
	pxor	xmm7, xmm7
	movd	xmm0, eax
	movd	eax, xmm0
	pop	ebx
	ret
read_fs32:
	mov	eax, [fs:0]
	ret
read_ds32:
	mov	eax, [BASE + 0x40]
	ret
bits 64

section .data
	align	8
pointer32: dd	0, 0
far_call: dd	0, 0
scratch: dd	0
