; The FPU's exceptions: #NM (EM, TS, MP), lazy switching, #MF and its deferral, #XM, #UD by OSXMMEXCPT
; (SDM 3A 2.5, 6.15, 1 8.7).
%define GUEST "fpu"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	call	not_available
	call	lazy
	call	emulation
	call	x87_errors
	call	simd_errors
	call	images
	call	control_words
	ret

not_available:
	SET_CR	cr0, CR0_TS
	FAULT	EXC_NM, 0, fld1
	FAULT	EXC_NM, 0, fninit
	FAULT	EXC_NM, 0, fnstsw ax
	FAULT	EXC_NM, 0, fxsave [image]
	FAULT	EXC_NM, 0, fxrstor [image]
	FAULT	EXC_NM, 0, xorps xmm0, xmm0
	FAULT	EXC_NM, 0, movdqa xmm0, [image]
	FAULT	EXC_NM, 0, ldmxcsr [mxcsr]
	FAULT	EXC_NM, 0, stmxcsr [mxcsr]
	FAULT	EXC_NM, 0, pxor mm0, mm0
	FAULT	EXC_NM, 0, emms
	FAULT	EXC_NM, 0, movd xmm0, eax
	FAULT	EXC_NM, 0, cvttsd2si eax, [image]
	FAULT	EXC_NM, 0, cvtps2pi mm0, [image]
	FAULT	EXC_NM, 0, pcmpeqb xmm0, xmm1
	FAULT	EXC_NM, 0, cvttsd2si eax, [image]	; no vector register among the operands
	FAULT	EXC_NM, 0, cvtsd2si rax, [image]
	FAULT	EXC_NM, 0, cvttss2si rax, [image]
	FAULT	EXC_NM, 0, cvtss2si eax, [image]
	FAULT	EXC_NM, 0, cvttps2pi mm0, [image]
	FAULT	EXC_NM, 0, pextrw [image], xmm0, 1
	FAULT	EXC_NM, 0, movntq [image], mm0
	; Not the FPU's: PREFETCH, CRC32, MOVNTI, fences.
	WORKS	prefetcht0 [image]
	WORKS	crc32 eax, bl
	WORKS	movnti [image], eax
	WORKS	sfence
	WORKS	lfence
	WORKS	mfence
	WORKS	clflush [image]
	USER_FAULT EXC_NM, 0, fld1
	; WAIT only with MP.
	FAULT	EXC_NM, 0, fwait
	CLEAR_CR cr0, CR0_MP
	WORKS	fwait
	FAULT	EXC_NM, 0, fld1
	SET_CR	cr0, CR0_MP
	; #NM goes before the page fault of the operand, and before the pending #MF.
	mov	rdi, 0x8000000000
	FAULT	EXC_NM, 0, fld dword [rdi]
	FAULT	EXC_NM, 0, movups xmm0, [rdi]
	; #UD goes before #NM.
	FAULT	EXC_UD, 0, {db 0xf0, 0xd9, 0xe8}	; LOCK FLD1
	clts
	WORKS	fld1
	WORKS	fstp st0
	; CLTS and MOV CR0 are the two ways.
	SET_CR	cr0, CR0_TS
	CLEAR_CR cr0, CR0_TS
	WORKS	fld1
	WORKS	fstp st0
	ret

; Two states, switched by #NM as an old kernel does.
lazy:
	fninit
	fld1
	movdqa	xmm3, [pattern]
	fxsave	[image]
	fninit
	pxor	xmm3, xmm3
	fxsave	[image2]
	HOOK	EXC_NM, .switch
	SET_CR	cr0, CR0_TS
	fldz					; in the first state
	faddp	st1, st0
	fistp	dword [result]
	CHECK32	[result], 1
	movq	rax, xmm3
	CHECK	rax, [pattern]
	CHECK32	[switches], 1
	HOOK	EXC_NM, 0
	ret
.switch:
	inc	dword [switches]
	clts
	fxrstor	[image]
	ret

emulation:
	SET_CR	cr0, CR0_EM
	FAULT	EXC_NM, 0, fld1
	FAULT	EXC_UD, 0, xorps xmm0, xmm0
	FAULT	EXC_UD, 0, pxor mm0, mm0
	FAULT	EXC_UD, 0, movdqa xmm0, [image]
	FAULT	EXC_UD, 0, cvttsd2si eax, [image]
	FAULT	EXC_UD, 0, cvtss2si rax, [image]
	FAULT	EXC_UD, 0, ldmxcsr [mxcsr]
	FAULT	EXC_NM, 0, fxsave [image]
	WORKS	fwait
	WORKS	movnti [image], eax
	WORKS	crc32 eax, dword [image]
	CLEAR_CR cr0, CR0_EM
	; Without OSFXSR there are MMX registers but no XMM ones.
	CLEAR_CR cr4, CR4_OSFXSR
	FAULT	EXC_UD, 0, xorps xmm0, xmm0
	FAULT	EXC_UD, 0, cvttsd2si eax, [image]
	FAULT	EXC_UD, 0, cvtsd2si rax, [image]
	FAULT	EXC_UD, 0, cvttss2si rax, [image]
	FAULT	EXC_UD, 0, cvtss2si eax, [image]
	FAULT	EXC_UD, 0, cvtps2pi mm0, [image]
	FAULT	EXC_UD, 0, cvttpd2pi mm0, [image]
	FAULT	EXC_UD, 0, stmxcsr [mxcsr]
	WORKS	pinsrw mm0, [image], 1
	WORKS	emms
	SET_CR	cr4, CR4_OSFXSR
	ret

x87_errors:
	fninit
	mov	word [control], 0x037b		; divide by zero not masked
	fldcw	[control]
	fld1
	fldz
	; The division raises nothing; the next waiting instruction does.
	WORKS	fdivp st1, st0
	FAULT	EXC_MF, 0, fld1
	FAULT	EXC_MF, 0, fwait
	FAULT	EXC_MF, 0, fst dword [result]
	FAULT	EXC_MF, 0, pxor mm0, mm0
	FAULT	EXC_MF, 0, emms
	; Instructions that do not wait.
	WORKS	fnstsw ax
	CHECK_BITS eax, 0x8084, 0x8084		; B, ES, ZE
	WORKS	fnstcw [control]
	WORKS	fxsave [image]
	WORKS	xorps xmm0, xmm0
	WORKS	fnclex
	WORKS	fld1
	fnstsw	ax
	CHECK_BITS eax, 0x80ff, 0
	; A masked one: the result is infinity, the flag stays.
	fninit
	fld1
	fldz
	fdivp	st1, st0
	fst	dword [result]
	CHECK32	[result], 0x7f800000
	fnstsw	ax
	CHECK_BITS eax, 0x80ff, 0x04
	; Unmasking a flag that is set raises at the next waiting instruction.
	mov	word [control], 0x037b
	WORKS	fldcw [control]
	FAULT	EXC_MF, 0, fld1
	fnclex
	; Stack faults.
	fninit
	mov	word [control], 0x037e		; invalid not masked
	fldcw	[control]
	WORKS	fstp dword [result]		; empty
	FAULT	EXC_MF, 0, fwait
	fnstsw	ax
	CHECK_BITS eax, 0x02c1, 0x00c1		; ES, SF, IE; C1 = 0: underflow
	fninit
	; FIP and FDP of the instruction that erred.
	mov	word [control], 0x037b
	fldcw	[control]
	fldz
	mov	dword [one], 0x3f800000
	fld1
.divide:
	fidiv	word [zero]
	; Those that raise #MF for it do not change them.
	FAULT	EXC_MF, 0, fadd dword [one]
	FAULT	EXC_MF, 0, fld1
	fnstenv	[environment]
	CHECK32	[environment + 12], .divide
	CHECK32	[environment + 20], zero
	fninit
	; With NE = 0 the error is IRQ 13's: ferr.asm.
	USER	.user
	CAUGHT	EXC_MF, 0, .user_wait
	fninit
	ret
.user:	fldcw	[control]
	fld1
	fldz
	fdivp	st1, st0
.user_wait:
	fwait
	ud2

simd_errors:
	; Divide by zero not masked.
	mov	dword [mxcsr], 0x1f80 & ~(1 << 9)
	ldmxcsr	[mxcsr]
	movaps	xmm0, [ones]
	xorps	xmm1, xmm1
	movaps	xmm2, xmm0
	FAULT	EXC_XM, 0, divps xmm0, xmm1
	stmxcsr	[mxcsr]
	CHECK_BITS [mxcsr], 0x3f, 1 << 2
	movmskps eax, xmm0
	cmpeqps	xmm2, xmm0			; the destination is as it was
	movmskps eax, xmm2
	CHECK	rax, 0xf
	; Without OSXMMEXCPT it is #UD.
	mov	dword [mxcsr], 0x1f80 & ~(1 << 9)
	ldmxcsr	[mxcsr]
	CLEAR_CR cr4, CR4_OSXMMEXCPT
	FAULT	EXC_UD, 0, divps xmm0, xmm1
	mov	dword [mxcsr], 0x1f80 & ~(1 << 7)
	ldmxcsr	[mxcsr]
	FAULT	EXC_UD, 0, cvttss2si eax, [infinity]
	SET_CR	cr4, CR4_OSXMMEXCPT
	FAULT	EXC_XM, 0, cvttss2si eax, [infinity]
	; Invalid, denormal, precision, one by one.
	mov	dword [mxcsr], 0x1f80 & ~(1 << 7)
	ldmxcsr	[mxcsr]
	xorps	xmm0, xmm0
	FAULT	EXC_XM, 0, divss xmm0, xmm1
	mov	dword [mxcsr], 0x1f80 & ~(1 << 12)
	ldmxcsr	[mxcsr]
	mov	eax, 1
	cvtsi2ss xmm0, eax
	mov	eax, 3
	cvtsi2ss xmm1, eax
	FAULT	EXC_XM, 0, divss xmm0, xmm1
	mov	dword [mxcsr], 0x1f80 & ~(1 << 8)
	ldmxcsr	[mxcsr]
	mov	eax, 1
	movd	xmm0, eax			; a denormal
	FAULT	EXC_XM, 0, addss xmm0, xmm1
	USER	.user
	CAUGHT	EXC_XM, 0, .user
	; Flags alone raise nothing, also not by LDMXCSR.
	mov	dword [mxcsr], 0x003f
	WORKS	ldmxcsr [mxcsr]
	mov	dword [mxcsr], 0x10000
	FAULT	EXC_GP, 0, ldmxcsr [mxcsr]	; reserved bits
	mov	dword [mxcsr], 0x1f80
	ldmxcsr	[mxcsr]
	; Alignment of 16 bytes: #GP.
	FAULT	EXC_GP, 0, movaps xmm0, [image + 8]
	FAULT	EXC_GP, 0, movaps [image + 1], xmm0
	FAULT	EXC_GP, 0, addps xmm0, [image + 4]
	WORKS	movups xmm0, [image + 1]
	ret
.user:	addss	xmm0, xmm1
	ud2

images:
	FAULT	EXC_GP, 0, fxsave [image + 8]
	FAULT	EXC_GP, 0, fxrstor [image + 8]
	fninit
	fld1
	fldpi
	movdqa	xmm15, [pattern]
	o64 fxsave [image]
	CHECK8	[image + 4], 0xc0		; abridged tag: two in use, the last registers
	CHECK16	[image], 0x037f
	CHECK	[image + 160 + 15 * 16], [pattern]
	fninit
	pxor	xmm15, xmm15
	o64 fxrstor [image]
	movq	rax, xmm15
	CHECK	rax, [pattern]
	fistp	dword [result]
	CHECK32	[result], 3
	fistp	dword [result]
	CHECK32	[result], 1
	; Reserved bits of MXCSR in the image.
	mov	eax, [image + 24]
	or	dword [image + 24], 0x10000
	FAULT	EXC_GP, 0, o64 fxrstor [image]
	mov	[image + 24], eax
	; FSAVE and FRSTOR; FNSAVE initializes.
	fninit
	fld1
	fnsave	[image2]
	fnstsw	ax
	CHECK_BITS eax, 0xffff, 0
	frstor	[image2]
	fistp	dword [result]
	CHECK32	[result], 1
	; MMX and x87 share registers: an MMX instruction marks all in use, EMMS none.
	fninit
	mov	rax, 0x1122334455667788
	movq	mm0, rax
	fnstenv	[environment]
	emms
	fnstenv	[environment]
	CHECK_BITS [environment + 8], 0xffff, 0xffff
	ret

control_words:
	fninit
	fnstcw	[control]
	CHECK16	[control], 0x037f
	; Bit 6 of the control word always reads as 1.
	mov	word [control], 0x0300
	fldcw	[control]
	fnstcw	[control]
	CHECK_BITS [control], 0xffff, 0x0340
	fninit
	stmxcsr	[mxcsr]
	CHECK32	[mxcsr], 0x1f80
	; FNSTSW AX and memory.
	fldz
	ftst
	fnstsw	ax
	CHECK_BITS eax, 0x4500, 0x4000
	fstp	st0
	; FCOMI sets flags.
	fld1
	fldz
	fcomip	st0, st1
	HOLDS	b, "fcomip 0 < 1"
	fstp	st0
	ret

section .data
	align	64
image:	times 1024 db 0
image2:	times 1024 db 0
pattern: dq 0x0123456789abcdef, 0xfedcba9876543210
ones:	dd 0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000
infinity: dd 0x7f800000
environment: times 32 db 0
mxcsr:	dd 0x1f80
control: dd 0
result:	dd 0
switches: dd 0
one:	dd 0
zero:	dd 0
