; x87, MMX and MXCSR in code that has become hot: what a loop of some hundred rounds makes of the FPU must be what one round
; makes of it. State handed to and fro between loads, FXSAVE and the like; #MF, #NM, #PF and #XM in the middle of a loop, and
; the pointers that their handlers see (SDM 1 8.1.8, 8.7; 3A 2.5).
%define GUEST "fpu_hot"
%define GUEST_BITS 64
%include "guest.inc"

ROUNDS	equ 300
NOWHERE	equ 0x8000000000

guest_main:
	call	arithmetic
	call	flags
	call	rounding
	call	images
	call	page_crossing
	call	error_in_loop
	call	error_before_page_fault
	call	pointers_at_page_fault
	call	pointers_kept
	call	not_available
	call	task_switched_in_loop
	call	mmx
	call	simd_control
	ret

arithmetic:
	fninit
	fldz
	mov	ecx, 1000
.next:	mov	[number], ecx
	fiadd	dword [number]
	dec	ecx
	jnz	.next
	fistp	qword [result]
	CHECK	[result], 500500
	; Powers: deep stack, exchanges, all sizes of operands.
	mov	ebx, ROUNDS
.powers:
	fld1
	fld1
	fadd	st0, st0
	fmul	qword [three]			; 6
	fsub	dword [one]			; 5
	fxch
	fidiv	word [four]			; 1/4
	fstp	tword [image]
	fld	tword [image]
	fmulp	st1, st0			; 5/4
	fld	st0
	fstp	dword [result]
	CHECK32	[result], 0x3fa00000
	fstp	qword [result]
	CHECK	[result], 0x3ff4000000000000
	fild	qword [big]
	fbstp	[image]
	CHECK	[image], 0x123456789012
	dec	ebx
	jnz	.powers
	fnstsw	ax
	CHECK_BITS eax, 0x38ff, 0
	ret

; FCOMI and FCMOV with EFLAGS, FNSTSW AX.
flags:
	fninit
	xor	esi, esi
	xor	edi, edi
	mov	ebx, ROUNDS
	mov	dword [number], 100
.next:	mov	[result], ebx
	fild	dword [result]
	fild	dword [number]
	fcomi	st0, st1
	setb	al
	movzx	ecx, al
	fcmovb	st0, st1
	lea	esi, [rsi + rcx]		; 100 < counter
	fistp	dword [result]			; the larger one
	fstp	st0
	add	edi, [result]
	fldz
	ftst
	fnstsw	ax
	fstp	st0
	sahf
	jnz	.wrong
	dec	ebx
	jnz	.next
	CHECK	rsi, ROUNDS - 100
	CHECK	rdi, 100 * 100 + (101 + ROUNDS) * (ROUNDS - 100) / 2
	ret
.wrong:	FAILED	"ftst of 0"
	ret

; FLDCW and FNSTCW.
rounding:
	fninit
	xor	esi, esi
	mov	ebx, ROUNDS
.next:	mov	word [control], 0x0b7f		; up
	test	bl, 1
	jz	.set
	mov	word [control], 0x077f		; down
.set:	fldcw	[control]
	fld	dword [half]
	fistp	dword [result]
	add	esi, [result]
	fnstcw	[result]
	movzx	eax, word [result]
	cmp	ax, [control]
	jne	.wrong
	dec	ebx
	jnz	.next
	CHECK	rsi, ROUNDS / 2
	fninit
	ret
.wrong:	FAILED	"control word"
	ret

; Instructions that move all state through memory, between others.
images:
	fninit
	fldz
	mov	ebx, ROUNDS
.next:	fld1
	faddp
	o64 fxsave [image]
	fninit
	fldpi
	o64 fxrstor [image]
	fld1
	faddp
	fnsave	[image2]
	frstor	[image2]
	fld1
	faddp
	fnstenv	[environment]
	fldenv	[environment]
	fld1
	faddp
	dec	ebx
	jnz	.next
	fistp	dword [result]
	CHECK32	[result], 4 * ROUNDS
	fnstsw	ax
	CHECK_BITS eax, 0x38ff, 0
	ret

page_crossing:
	fninit
	mov	ebx, ROUNDS
	mov	rsi, pages + 4096 - 5
	fldpi
	fstp	tword [rsi]
.next:	fld	tword [rsi]
	fmul	dword [half]
	fstp	tword [rsi]
	fld	tword [rsi]
	fadd	st0, st0
	fstp	tword [rsi]
	dec	ebx
	jnz	.next
	fldpi
	fld	tword [rsi]
	fcompp
	fnstsw	ax
	CHECK_BITS eax, 0x4500, 0x4000
	ret

; One of a hundred divisions errs; the store behind it raises #MF, with the pointers of the division.
error_in_loop:
	fninit
	fldcw	[divide_errors]
	mov	rsi, divisors
	xor	ebx, ebx
	mov	dword [handled], 0
	HOOK	EXC_MF, mf_handler
.next:	fld1
.divide:
	fdiv	dword [rsi]
	add	rsi, 4
	lea	rax, [rsi + rbx]
.waits:	fstp	dword [result]
	inc	ebx
	cmp	ebx, 100
	jb	.next
	HOOK	EXC_MF, 0
	CHECK32	[handled], 1
	CHECK	[handler_ip], .waits
	CHECK32	[environment + 12], .divide
	CHECK16	[environment + 18], 0x036	; FOP
	CHECK16	[environment + 16], SEL_CODE
	CHECK32	[environment + 20], divisors + 70 * 4
	fnstsw	ax
	CHECK_BITS eax, 0x38ff, 0
	fninit
	ret

mf_handler:
	inc	dword [handled]
	fnstenv	[environment]
	fnclex
	fldcw	[divide_errors]
	mov	rax, [rdi + FRAME.ip]
	mov	[handler_ip], rax
	ret

; The pending error comes before the operand's page fault.
error_before_page_fault:
	fninit
	fldcw	[divide_errors]
	mov	dword [handled], 0
	HOOK	EXC_MF, mf_handler
	HOOK	EXC_PF, .page_fault
	mov	rsi, one
	mov	rdi, one
	mov	ebx, ROUNDS
.next:	cmp	ebx, 2
	mov	rax, zero
	cmove	rsi, rax
	mov	rax, NOWHERE
	cmove	rdi, rax
	fld1
	fdiv	dword [rsi]
.waits:	fadd	dword [rdi]
	fstp	dword [result]
	mov	rsi, one
	mov	rdi, one
	dec	ebx
	jnz	.next
	HOOK	EXC_MF, 0
	HOOK	EXC_PF, 0
	CHECK32	[handled], 0x101
	CHECK	[handler_ip], .waits
	CHECK32	[result], 0x40000000
	fninit
	ret
.page_fault:
	add	byte [handled + 1], 1
	cmp	byte [handled], 1
	je	.second
	FAILED	"#PF before #MF"
.second:
	mov	qword [rdi + FRAME.xdi], one
	ret

; An operand that cannot be reached does not change the pointers.
pointers_at_page_fault:
	fninit
	HOOK	EXC_PF, .page_fault
	mov	ebx, ROUNDS
	mov	rdi, one
.next:	mov	r9, ones
	mov	r10d, 2
	cmp	ebx, 2
	mov	rax, NOWHERE
	cmove	rdi, rax
.first:	fld	dword [r9 + r10 * 2 + 4]
	fld	st0
.last:	fadd	st0, st0
	fadd	dword [rdi]
	fstp	st0
	fstp	st0
	mov	rdi, one
	dec	ebx
	jnz	.next
	HOOK	EXC_PF, 0
	CHECK32	[environment + 12], .last
	CHECK16	[environment + 18], 0x4c0
	CHECK32	[environment + 20], ones + 8
	ret
.page_fault:
	fnstenv	[environment]
	mov	qword [rdi + FRAME.xdi], one
	ret

; What FNSTENV and FNSAVE see behind a block, though the address's registers have changed since.
pointers_kept:
	fninit
	mov	ebx, ROUNDS
	mov	rsi, ones
.next:	mov	eax, 4
.load:	fld	dword [rsi + rax * 2]
	pop	rcx
	push	rcx
	mov	eax, 1
	inc	ecx
	fstp	st0
.last:	fnop
	fnstenv	[environment]
	cmp	dword [environment + 12], .last
	jne	.wrong
	cmp	dword [environment + 20], ones + 8
	jne	.wrong
	fldcw	[environment]
	push	qword [three]
.on_stack:
	fld	qword [rsp]
	pop	rax
	fstp	st0
	test	bl, 1
	jz	.even
	nop
.even:	fnsave	[image2]
	lea	rax, [rsp - 8]
	cmp	[image2 + 20], eax
	jne	.wrong
	cmp	word [image2 + 18], 0x5d8
	jne	.wrong
	fninit
	dec	ebx
	jnz	.next
	ret
.wrong:	FAILED	"pointers"
	fninit
	ret

%macro HOT_FAULT 3			; vector, name of a subroutine, the instruction's address
	CATCH	%%resume
	call	%2
%%resume:
	CAUGHT	%1, 0, %3
%endmacro
%macro WARM 1
	mov	ebx, ROUNDS
%%next:	call	%1
	dec	ebx
	jnz	%%next
%endmacro

; Subroutines that are hot when CR0 forbids what they do.
not_available:
	fninit
	WARM	hot_x87
	WARM	hot_store
	WARM	hot_status
	WARM	hot_wait
	WARM	hot_mmx
	WARM	hot_sse
	WARM	hot_convert
	WARM	hot_mxcsr
	SET_CR	cr0, CR0_TS
	HOT_FAULT EXC_NM, hot_x87, hot_x87.at
	HOT_FAULT EXC_NM, hot_store, hot_store.at
	HOT_FAULT EXC_NM, hot_status, hot_status.at
	HOT_FAULT EXC_NM, hot_wait, hot_wait.at
	HOT_FAULT EXC_NM, hot_mmx, hot_mmx.at
	HOT_FAULT EXC_NM, hot_sse, hot_sse.at
	HOT_FAULT EXC_NM, hot_convert, hot_convert.at
	HOT_FAULT EXC_NM, hot_mxcsr, hot_mxcsr.at
	CLEAR_CR cr0, CR0_MP
	WORKS	call hot_wait
	SET_CR	cr0, CR0_MP
	clts
	WORKS	call hot_x87
	WORKS	call hot_store
	WORKS	call hot_status
	WORKS	call hot_wait
	WORKS	call hot_mmx
	WORKS	call hot_sse
	WORKS	call hot_convert
	WORKS	call hot_mxcsr
	SET_CR	cr0, CR0_EM
	HOT_FAULT EXC_NM, hot_x87, hot_x87.at
	WORKS	call hot_wait
	HOT_FAULT EXC_UD, hot_mmx, hot_mmx.at
	HOT_FAULT EXC_UD, hot_sse, hot_sse.at
	HOT_FAULT EXC_UD, hot_convert, hot_convert.at
	HOT_FAULT EXC_UD, hot_mxcsr, hot_mxcsr.at
	CLEAR_CR cr0, CR0_EM
	CLEAR_CR cr4, CR4_OSFXSR
	WORKS	call hot_mmx
	HOT_FAULT EXC_UD, hot_sse, hot_sse.at
	HOT_FAULT EXC_UD, hot_convert, hot_convert.at
	HOT_FAULT EXC_UD, hot_mxcsr, hot_mxcsr.at
	SET_CR	cr4, CR4_OSFXSR
	WORKS	call hot_sse
	ret

	align	16
hot_x87:
	mov	eax, 1
.at:	fld1
	fstp	st0
	ret
hot_store:
	mov	eax, 2
.at:	fnstcw	[control]
	ret
hot_status:
	mov	eax, 3
.at:	fnstsw	ax
	ret
hot_wait:
	mov	eax, 4
.at:	fwait
	ret
hot_mmx:
	mov	eax, 5
.at:	movq	mm0, [pattern]
	emms
	ret
hot_sse:
	mov	eax, 6
.at:	addps	xmm0, xmm1
	ret
hot_convert:
	mov	eax, 7
.at:	cvttsd2si eax, [three]
	ret
hot_mxcsr:
	mov	eax, 8
.at:	stmxcsr	[mxcsr]
	ldmxcsr	[mxcsr]
	ret

; TS comes and goes inside the loop, as an old kernel's lazy switch does it.
task_switched_in_loop:
	fninit
	fldz
	HOOK	EXC_NM, .switch
	mov	dword [handled], 0
	mov	ebx, ROUNDS
.next:	mov	rax, cr0
	mov	rcx, rax
	or	rcx, CR0_TS
	test	bl, 3
	cmovz	rax, rcx
	mov	cr0, rax
	fld1
	faddp
	dec	ebx
	jnz	.next
	HOOK	EXC_NM, 0
	fistp	dword [result]
	CHECK32	[result], ROUNDS
	CHECK32	[handled], ROUNDS / 4
	ret
.switch:
	clts
	inc	dword [handled]
	o64 fxsave [image]
	fninit
	fld1
	fldpi
	o64 fxrstor [image]
	ret

; MMX instructions mark all registers in use and set TOP to 0; x87 sees them as what is no number.
mmx:
	fninit
	mov	ebx, ROUNDS
	xor	esi, esi
	xor	edi, edi
.next:	fld1
	movq	mm7, [pattern]
	movq	rax, mm7
	movd	mm1, ebx
	paddd	mm1, mm1
	movd	ecx, mm1
	add	esi, ecx
	pshufw	mm2, mm7, 0
	movq	[result], mm2
	fnstenv	[environment]
	emms
	cmp	word [environment + 8], 0
	setne	cl
	movzx	ecx, cl
	add	edi, ecx
	cmp	rax, [pattern]
	jne	.wrong
	fld1
	fistp	dword [number]
	fnstsw	ax
	test	ax, 0x38ff
	jnz	.wrong
	dec	ebx
	jnz	.next
	CHECK	rsi, ROUNDS * (ROUNDS + 1)
	CHECK	[result], 0xcdefcdefcdefcdef
	CHECK32	[number], 1
	; Tags: 2 (special) for what was written.
	CHECK	rdi, ROUNDS
	CHECK_BITS [environment + 8], 0xc03c, 0x8028
	fninit
	ret
.wrong:	FAILED	"MMX"
	fninit
	ret

; MXCSR in a loop: rounding, status flags, an exception that is not masked.
simd_control:
	xor	esi, esi
	xor	edi, edi
	mov	dword [handled], 0
	HOOK	EXC_XM, .handler
	mov	ebx, ROUNDS
.next:	mov	dword [mxcsr], 0x5f80		; up
	test	bl, 1
	jz	.set
	mov	dword [mxcsr], 0x3f80		; down
.set:	ldmxcsr	[mxcsr]
	cvtss2si eax, [half]
	add	esi, eax
	stmxcsr	[mxcsr]
	mov	eax, [mxcsr]
	and	eax, 0x20			; inexact
	add	edi, eax
	mov	dword [mxcsr], 0x1d80		; ZM clear
	ldmxcsr	[mxcsr]
	movss	xmm0, [one]
	lea	rax, [one]
	cmp	ebx, 5
	mov	rcx, zero
	cmove	rax, rcx
.divide:
	divss	xmm0, [rax]
	dec	ebx
	jnz	.next
	HOOK	EXC_XM, 0
	CHECK	rsi, ROUNDS / 2
	CHECK	rdi, ROUNDS * 0x20
	CHECK32	[handled], 1
	CHECK	[handler_ip], .divide
	CHECK_BITS [result], 0x3f, 4
	mov	dword [mxcsr], 0x1f80
	ldmxcsr	[mxcsr]
	; Reserved bits, when it is hot.
	WARM	hot_mxcsr_load
	mov	dword [mxcsr], 0x10000
	HOT_FAULT EXC_GP, hot_mxcsr_load, hot_mxcsr_load.at
	mov	dword [mxcsr], 0x1f80
	WORKS	call hot_mxcsr_load
	ret
.handler:
	inc	dword [handled]
	stmxcsr	[result]
	mov	rax, [rdi + FRAME.ip]
	mov	[handler_ip], rax
	mov	qword [rdi + FRAME.xax], one
	ret
hot_mxcsr_load:
	xor	eax, eax
.at:	ldmxcsr	[mxcsr]
	ret

section .data
	align	64
image:	times 512 db 0
image2:	times 128 db 0
environment: times 32 db 0
pattern: dq 0x0123456789abcdef
three:	dq 3.0
big:	dq 123456789012
ones:	dd 1.0, 1.0, 1.0, 1.0
one:	dd 1.0
half:	dd 0.5
zero:	dd 0
mxcsr:	dd 0x1f80
number:	dd 0
handled: dd 0
result:	dq 0
handler_ip: dq 0
control: dw 0
divide_errors: dw 0x037b
four:	dw 4
divisors:
%assign i 0
%rep 100
%if i == 70
	dd	0
%else
	dd	1.0
%endif
%assign i i+1
%endrep
	align	4096
pages:	times 8192 db 0
