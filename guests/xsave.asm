; XSAVE, XRSTOR, XSAVEOPT, XSAVEC, XSAVES, XRSTORS: areas, headers, what they refuse; AVX by XCR0 (SDM 1 chapter 13).
%define GUEST "xsave"
%define GUEST_BITS 64
%include "guest.inc"

section .bss
	alignb	4096
area:	resb	4096
area2:	resb	4096
section .text

clear:
	push	rax
	push	rcx
	push	rdi
	mov	edi, area
	xor	eax, eax
	mov	ecx, 1024
	rep	stosq
	pop	rdi
	pop	rcx
	pop	rax
	ret

; ALL of XCR0 is asked for.
%macro MASK 1
	mov	eax, %1
	xor	edx, edx
%endmacro

guest_main:
	mov	eax, 1
	cpuid
	bt	ecx, 26
	jc	.have
	PRINT	GUEST, ": no XSAVE", 10
	ret
.have:
	MASK	3
	FAULT	EXC_UD, 0, xsave [area]
	FAULT	EXC_UD, 0, xrstor [area]
	SET_CR	cr4, CR4_OSXSAVE
	mov	eax, 13
	mov	ecx, 1
	cpuid
	mov	[features], eax
	mov	eax, 13
	xor	ecx, ecx
	cpuid
	mov	[all_bits], eax
	CHECK	rbx, 512 + 64			; of XCR0 = 1
	xor	ecx, ecx
	MASK	3
	xsetbv
	call	standard
	call	refused
	call	avx
	call	compacted
	call	supervisor
	ret

standard:
	call	clear
	fninit
	fld1
	movdqa	xmm5, [pattern]
	MASK	3
	o64 xsave [area]
	CHECK	[area + 512], 3
	CHECK	[area + 160 + 5 * 16], [pattern]
	CHECK8	[area + 4], 0x80
	; Only what is asked for is written; XSTATE_BV's other bits stay.
	call	clear
	MASK	2
	o64 xsave [area]
	CHECK	[area + 160 + 5 * 16], [pattern]
	CHECK8	[area + 4], 0
	CHECK_BITS [area + 512], 3, 2
	; XRSTOR: a component that is asked for, but not in XSTATE_BV, is initialized.
	mov	qword [area + 512], 2
	MASK	3
	o64 xrstor [area]
	fnstenv	[area2]
	CHECK_BITS [area2 + 8], 0xffff, 0xffff
	movq	rax, xmm5
	CHECK	rax, [pattern]
	mov	qword [area + 512], 0
	MASK	3
	o64 xrstor [area]
	movq	rax, xmm5
	CHECK	rax, 0
	; Not asked for: not touched.
	movdqa	xmm5, [pattern]
	MASK	1
	o64 xrstor [area]
	movq	rax, xmm5
	CHECK	rax, [pattern]
	; MXCSR is restored with SSE, also when SSE is initialized: then from memory all the same.
	mov	dword [area + 24], 0x1f00
	MASK	2
	o64 xrstor [area]
	stmxcsr	[area2]
	CHECK32	[area2], 0x1f00
	mov	dword [area + 24], 0x1f80
	MASK	2
	o64 xrstor [area]
	ret

refused:
	MASK	3
	FAULT	EXC_GP, 0, xsave [area + 8]
	FAULT	EXC_GP, 0, xsave [area + 32]
	FAULT	EXC_GP, 0, xrstor [area + 16]
	call	clear
	mov	dword [area + 24], 0x1f80
	WORKS	xrstor [area]
	bts	qword [area + 512], 8		; a bit that XCR0 does not have
	FAULT	EXC_GP, 0, xrstor [area]
	mov	qword [area + 512], 0
	mov	byte [area + 520], 1		; XCOMP_BV without its bit 63
	FAULT	EXC_GP, 0, xrstor [area]
	mov	byte [area + 520], 0
	mov	byte [area + 528], 1		; reserved bytes
	FAULT	EXC_GP, 0, xrstor [area]
	mov	byte [area + 528], 0
	mov	dword [area + 24], 0x10000	; MXCSR
	FAULT	EXC_GP, 0, xrstor [area]
	mov	dword [area + 24], 0x1f80
	SET_CR	cr0, CR0_TS
	MASK	3
	FAULT	EXC_NM, 0, xsave [area]
	FAULT	EXC_NM, 0, xrstor [area]
	clts
	MASK	3
	mov	rdi, 0x8000000000
	CATCH	.unmapped
	xsave	[rdi]
.unmapped:
	CATCH_END
	CHECK	[caught_vector], EXC_PF		; by a read of the header or by a write
	FAULT	EXC_PF, 0, xrstor [rdi]
	FAULT	EXC_UD, 0, {db 0xf0, 0x0f, 0xae, 0x23}	; LOCK XSAVE
	USER_WORKS xsave [area]
	ret

avx:
	test	dword [all_bits], 4
	jz	.end
	; Without XCR0's bit VEX instructions are #UD.
	FAULT	EXC_UD, 0, vaddps ymm0, ymm1, ymm2
	FAULT	EXC_UD, 0, vaddps xmm0, xmm1, xmm2
	FAULT	EXC_UD, 0, vzeroupper
	xor	ecx, ecx
	MASK	7
	xsetbv
	mov	eax, 13
	cpuid
	CHECK	rbx, 512 + 64 + 256
	WORKS	vzeroupper
	vbroadcastsd ymm5, [pattern]
	call	clear
	MASK	7
	o64 xsave [area]
	CHECK	[area + 576 + 5 * 16], [pattern]
	CHECK	[area + 576 + 5 * 16 + 8], [pattern]
	CHECK_BITS [area + 512], 4, 4
	vzeroall
	o64 xrstor [area]
	vextractf128 xmm0, ymm5, 1
	movq	rax, xmm0
	CHECK	rax, [pattern]
	; VZEROUPPER puts it into its initial state: XSAVEOPT and XSAVEC may see that, XSAVE's XSTATE_BV too.
	vzeroupper
	mov	qword [area + 512], 0
	MASK	7
	o64 xrstor [area]
	; SSE instructions keep upper halves, VEX ones clear them.
	vbroadcastsd ymm5, [pattern]
	xorps	xmm5, xmm5
	vextractf128 xmm0, ymm5, 1
	movq	rax, xmm0
	CHECK	rax, [pattern]
	vxorps	xmm5, xmm5, xmm5
	vextractf128 xmm0, ymm5, 1
	movq	rax, xmm0
	CHECK	rax, 0
	; #NM and TS.
	SET_CR	cr0, CR0_TS
	FAULT	EXC_NM, 0, vaddps ymm0, ymm1, ymm2
	clts
	; EM does not matter to AVX; a bad encoding does.
	FAULT	EXC_UD, 0, {db 0xf0, 0xc5, 0xf4, 0x58, 0xc2}	; LOCK VEX
	FAULT	EXC_UD, 0, {db 0x66, 0xc5, 0xf4, 0x58, 0xc2}	; 66h VEX
	; Unaligned operands are fine with VEX, but not for VMOVAPS.
	WORKS	vaddps ymm0, ymm1, [area + 4]
	FAULT	EXC_GP, 0, vmovaps ymm0, [area + 16]
	WORKS	vmovaps xmm0, [area + 16]
	xor	ecx, ecx
	MASK	3
	xsetbv
	FAULT	EXC_UD, 0, vaddps ymm0, ymm1, ymm2
.end:
	ret

compacted:
	test	dword [features], 2
	jz	.no_xsavec
	xor	ecx, ecx
	mov	eax, [all_bits]
	and	eax, 7
	xor	edx, edx
	xsetbv
	fninit
	movdqa	xmm5, [pattern]
	call	clear
	mov	eax, [all_bits]
	and	eax, 7
	xor	edx, edx
	xsavec64 [area]
	mov	rbx, 1 << 63
	or	rbx, rax
	CHECK	[area + 520], rbx
	CHECK	[area + 160 + 5 * 16], [pattern]
	CHECK_BITS [area + 512], 2, 2
	; XRSTOR takes it back.
	pxor	xmm5, xmm5
	xrstor64 [area]
	movq	rcx, xmm5
	CHECK	rcx, [pattern]
	; XSTATE_BV must be within XCOMP_BV.
	mov	rbx, 1 << 63 | 1
	mov	[area + 520], rbx
	mov	qword [area + 512], 2
	FAULT	EXC_GP, 0, xrstor64 [area]
	xor	ecx, ecx
	MASK	3
	xsetbv
	jmp	.opt
.no_xsavec:
	FAULT	EXC_UD, 0, xsavec64 [area]
.opt:
	test	dword [features], 1
	jz	.end
	call	clear
	movdqa	xmm5, [pattern]
	MASK	3
	xsaveopt64 [area]
	CHECK	[area + 160 + 5 * 16], [pattern]
	CHECK	[area + 520], 0
.end:
	ret

supervisor:
	test	dword [features], 8
	jz	.end
	mov	ecx, 0xda0			; IA32_XSS
	xor	eax, eax
	xor	edx, edx
	WORKS	wrmsr
	mov	eax, 1
	FAULT	EXC_GP, 0, wrmsr
	call	clear
	movdqa	xmm5, [pattern]
	MASK	3
	xsaves64 [area]
	mov	rbx, 1 << 63 | 3
	CHECK	[area + 520], rbx
	pxor	xmm5, xmm5
	xrstors64 [area]
	movq	rcx, xmm5
	CHECK	rcx, [pattern]
	; XRSTORS wants the compacted form.
	mov	qword [area + 520], 0
	FAULT	EXC_GP, 0, xrstors64 [area]
	USER_FAULT EXC_GP, 0, xsaves64 [area]
	USER_FAULT EXC_GP, 0, xrstors64 [area]
.end:
	ret

section .data
	align	16
pattern: dq 0x0123456789abcdef, 0xfedcba9876543210
features: dd 0
all_bits: dd 0
