; Arithmetic flags that an interrupt's image shows, where the code overwrites them before it reads them: they are what
; the last instruction left all the same (SDM 3A 6.12.1).
%define GUEST "interrupt_flags"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

V	equ 0x60
LVT	equ 0x320
INITIAL	equ 0x380
DIVIDE	equ 0x3e0
MASK	equ 0x8c5				; those that all of the instructions below define: not AF
XOR_0	equ 0x044
OR_1	equ 0x084
WANTED	equ 300

; PLACE name, flags: an interrupt that comes here shows them.
%macro PLACE 2
%1:
[section .data]
	dq	%1, %2
__?SECT?__
%endmacro

section .data
	align	8
	dq	0				; so that the list begins somewhere
places:
section .bss
	alignb	8
cell:	resq	1
other:	resq	1
seen:	resd	1
wrong:	resd	1
wrong_flags: resd 1
wrong_ip: resq	1

section .text
guest_main:
	call	apic_enable
	HOOK	V, look
	call	branches
	call	shadow
	call	through_callee
	CHECK32	[wrong], 0
	CHECK	[wrong_ip], 0
	CHECK32	[wrong_flags], 0
	ret

look:
	call	irq_note
	LAPIC_WRITE 0xb0, 0
	mov	rax, [rdi + FRAME.ip]
	mov	esi, places
.next:
	cmp	esi, places_end
	jae	.done
	add	esi, 16
	cmp	rax, [rsi - 16]
	jne	.next
	inc	dword [seen]
	mov	ecx, [rdi + FRAME.flags]
	and	ecx, MASK
	cmp	ecx, [rsi - 8]
	je	.done
	inc	dword [wrong]
	mov	[wrong_ip], rax
	mov	[wrong_flags], ecx
.done:
	ret

; By the timer: it comes where blocks end, also at a jump behind which flags are dead.
branches:
	call	irq_forget
	mov	dword [seen], 0
	LAPIC_WRITE DIVIDE, 0xb
	LAPIC_WRITE LVT, 0x20000 | V		; periodic
	LAPIC_WRITE INITIAL, 20000
	mov	rbp, 20000000000		; minutes
	mov	ebx, cell
	sti
	jmp	.top
PLACE .back, XOR_0
	mov	rax, [rbx]
PLACE .loaded, XOR_0
	or	r8, -1
PLACE .killed, OR_1
	mov	rax, [rbx + 8]
PLACE .later, OR_1
	cmp	dword [seen], WANTED
	ja	.end
	dec	rbp
	jz	.end
.top:
	xor	edx, edx
PLACE .zero, XOR_0
	mov	rax, [rbx]
PLACE .jump, XOR_0
	jmp	.back
.end:
	cli
	LAPIC_WRITE LVT, 0x10000 | V
	LAPIC_WRITE INITIAL, 0
	cmp	dword [seen], WANTED
	HOLDS	a, "interrupts were seen where flags are dead"
	ret

; Behind STI, where the first instruction cannot be interrupted.
shadow:
	mov	dword [seen], 0
	mov	ebp, 200
	mov	ebx, cell
.top:
	SELF_IPI V
	xor	edx, edx
	mov	rax, [rbx]
	sti
	nop
PLACE .nop, XOR_0
	mov	rax, [rbx + 8]
PLACE .load, XOR_0
	or	r8, -1
PLACE .or, OR_1
	nop
PLACE .another, OR_1
	cli
	dec	ebp
	jnz	.top
	CHECK32	[seen], 200
	ret

; A callee opens a window by STI, closes it and returns much later: nothing of the STI's shadow is left when it does.
through_callee:
	call	irq_forget
	mov	dword [seen], 0
	mov	ebp, 640
	mov	ebx, cell
	jmp	.top
	align	64
.ipi:
	SELF_IPI V
	jmp	.call
.top:
	test	ebp, 15
	jz	.ipi
.call:
	xor	edx, edx
	call	.opens
	dec	ebp
	jnz	.top
	CHECK32	[seen], 40
	ret
.opens:
	sti
	mov	rax, [rbx]
PLACE .open, XOR_0
	mov	rax, [rbx + 8]
PLACE .still, XOR_0
	cli
	or	r8, -1
	mov	ecx, 3
.later:
	dec	ecx
	jnz	.later
	cmp	ebp, 1000
	ja	.never
	ret
.never:
	ud2

section .data
places_end:
