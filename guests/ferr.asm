; x87 errors while CR0.NE is 0: the processor waits for IRQ 13 at the next waiting instruction, port F0h ends the
; interrupt and lets the handler's own x87 instructions pass (SDM 1 8.7.2, appendix D.2).
%define GUEST "ferr"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

; Leaves an error that waits: 1 / 0.
%macro DIVIDE_BY_ZERO 0
	fninit
	fldcw	[control]
	fld1
	fldz
	fdivp	st1, st0
%endmacro

section .data
control: dw 0x37b				; zero divide is not masked
unmasked: dw 0x37a
other:	dw 0x27f
section .bss
	alignb	8
status:	resw	1
after:	resw	1
word_:	resw	1
form:	resd	1				; what the handler does
number:	resq	1

section .text
guest_main:
	call	apic_enable
	LAPIC_WRITE 0x350, 0x700		; LINT0: ExtINT
	HOOK	0x2d, error
	mov	al, 0xfb			; the cascade
	out	0x21, al
	mov	al, 0xdf			; IRQ 13
	out	0xa1, al
	CLEAR_CR cr0, CR0_NE
	call	irq_forget
	sti
	call	waits
	call	stores
	call	ignored
	call	masked
	call	late
	cli
	; #MF again.
	SET_CR	cr0, CR0_NE
	DIVIDE_BY_ZERO
	FAULT	EXC_MF, 0, fwait
	fnclex
	CHECK32	[IRQ_COUNT(0x2d)], 6
	mov	al, 0xff
	out	0x21, al
	out	0xa1, al
	ret

; The interrupt comes before the waiting instruction, which is done afterwards.
waits:
	mov	dword [form], 0
	DIVIDE_BY_ZERO
	nop
.wait:	fwait
	CHECK32	[IRQ_COUNT(0x2d)], 1
	CHECK	[irq_ip], .wait
	CHECK_BITS [status], 0xff, 0x84
	; Without an error there is none.
	fld1
	fwait
	CHECK32	[IRQ_COUNT(0x2d)], 1
	; The line rises again.
	DIVIDE_BY_ZERO
.load:	fld1
	CHECK32	[IRQ_COUNT(0x2d)], 2
	CHECK	[irq_ip], .load
	ret

stores:
	mov	dword [form], 0
	DIVIDE_BY_ZERO
	mov	qword [number], -1
.store:	fst	qword [number]
	CHECK32	[IRQ_COUNT(0x2d)], 3
	CHECK	[irq_ip], .store
	CHECK	[number], 0			; the division was not done: its operands are there still
	fninit
	ret

; Waiting instructions of the handler pass while IGNNE# is asserted, and leave the error there.
ignored:
	mov	dword [form], 1
	DIVIDE_BY_ZERO
.wait:	fwait
	CHECK32	[IRQ_COUNT(0x2d)], 4
	CHECK	[irq_ip], .wait
	CHECK_BITS [status], 0xff, 0x84
	CHECK_BITS [after], 0xff, 0x84
	CHECK_BITS [word_], 0xffff, 0x37b
	ret

; A control word that masks the error ends it.
masked:
	mov	dword [form], 2
	DIVIDE_BY_ZERO
.wait:	fwait
	CHECK32	[IRQ_COUNT(0x2d)], 5
	CHECK_BITS [after], 0xff, 0x04
	fnstcw	[word_]
	CHECK_BITS [word_], 0xffff, 0x27f
	fnclex
	ret

; With IF = 0 an instruction that does not wait goes on; the interrupt comes at the next that does.
late:
	mov	dword [form], 0
	cli
	DIVIDE_BY_ZERO
	fnstsw	[word_]
	CHECK_BITS [word_], 0xff, 0x84
	CHECK32	[IRQ_COUNT(0x2d)], 5
	sti
	nop
	CHECK32	[IRQ_COUNT(0x2d)], 5
.wait:	fwait
	CHECK32	[IRQ_COUNT(0x2d)], 6
	CHECK	[irq_ip], .wait
	ret

error:
	call	irq_note
	fnstsw	[status]
	out	0xf0, al
	cmp	dword [form], 1
	jb	.clear
	ja	.mask
	fwait
	fld1
	fstp	st0
	fwait
	fnstsw	[after]
	fnstcw	[word_]
.clear:
	fnclex
	jmp	.end
.mask:
	fldcw	[other]
	fnstsw	[after]
.end:
	mov	al, 0x20
	out	0xa0, al
	out	0x20, al
	ret
