; The 16550A on COM1, in its loopback: registers, divisor, FIFO and its triggers, line and modem status, interrupts
; and their order (NS16550A data sheet).
%define GUEST "serial"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

COM	equ 0x3f8

%macro READ 1				; register: AL
	mov	dx, COM + %1
	in	al, dx
%endmacro
%macro WRITE 2
	mov	dx, COM + %1
	mov	al, %2
	out	dx, al
%endmacro
; Messages go out on this port too, so checks wait until the loopback is left: results are kept.
%define KEEP KEEP_ __?LINE?__,
%macro KEEP_ 3				; line, mask, want: of AL
	[section .strings]
	%defstr SITE_LINE %1
%%site:	db	GUEST, ".asm:", SITE_LINE, 0
	__?SECT?__
	push	rax
	push	rcx
	movzx	eax, al
	and	eax, %2
	mov	ecx, [kept]
	mov	dword [records + rcx], %%site
	mov	[records + rcx + 4], eax
	mov	dword [records + rcx + 8], %3
	add	ecx, 12
	mov	[kept], ecx
	pop	rcx
	pop	rax
%endmacro

guest_main:
	call	apic_enable
	; Empty the port first.
	mov	ecx, 100000
.drain:
	READ	5
	test	al, 0x40
	jnz	.empty
	loop	.drain
.empty:
	call	registers
	call	loopback
	call	fifo
	call	interrupts
	; Back to printing.
	WRITE	1, 0
	WRITE	2, 0
	WRITE	3, 3
	WRITE	4, 3
	xor	ebx, ebx
.report:
	cmp	ebx, [kept]
	jae	.done
	mov	eax, [records + rbx]
	mov	[check_site], rax
	mov	eax, [records + rbx + 4]
	mov	[check_got], rax
	mov	eax, [records + rbx + 8]
	mov	[check_want], rax
	call	check_compare
	add	ebx, 12
	jmp	.report
.done:
	ret

registers:
	WRITE	7, 0x5a				; scratch
	READ	7
	KEEP	0xff, 0x5a
	WRITE	7, 0xa5
	READ	7
	KEEP	0xff, 0xa5
	; The divisor hides behind DLAB.
	WRITE	3, 0x83
	WRITE	0, 0x12
	WRITE	1, 0x34
	READ	0
	KEEP	0xff, 0x12
	READ	1
	KEEP	0xff, 0x34
	WRITE	0, 1
	WRITE	1, 0
	WRITE	3, 0x03
	READ	1
	KEEP	0xff, 0				; IER again
	READ	3
	KEEP	0xff, 3
	WRITE	1, 0xff
	READ	1
	KEEP	0xff, 0x0f
	WRITE	1, 0
	WRITE	4, 0xff
	READ	4
	KEEP	0xff, 0x1f
	WRITE	4, 0x03
	; Line status after a reset of everything.
	READ	5
	KEEP	0x60, 0x60
	READ	2
	KEEP	0x0f, 1				; no interrupt
	ret

; Everything that is sent comes back.
loopback:
	WRITE	2, 0
	WRITE	4, 0x10
	READ	6
	KEEP	0xf0, 0
	WRITE	4, 0x1f				; DTR, RTS, OUT1, OUT2 are DSR, CTS, RI, DCD
	READ	6
	KEEP	0xf0, 0xf0
	KEEP	0x0b, 0x0b			; changes
	READ	6
	KEEP	0x0f, 0				; reading cleared them
	WRITE	4, 0x1b				; RI falls: its trailing edge counts
	READ	6
	KEEP	0x04, 0x04
	WRITE	4, 0x12
	READ	6
	KEEP	0xf0, 0x10
	; A byte.
	READ	0
	WRITE	0, 0x41
	call	until_data
	READ	5
	KEEP	0x61, 0x61
	READ	0
	KEEP	0xff, 0x41
	READ	5
	KEEP	0x01, 0
	; Overrun without FIFO: the second byte takes the first one's place.
	WRITE	0, 0x42
	call	until_data
	WRITE	0, 0x43
	call	until_sent
	READ	5
	KEEP	0x03, 0x03
	READ	5
	KEEP	0x02, 0				; read: cleared
	READ	0
	KEEP	0xff, 0x43
	ret

until_data:
	push	rcx
	mov	ecx, 600000
.next:
	call	delay_100us
	READ	5
	test	al, 1
	jnz	.here
	loop	.next
	KEEP	0, 1				; fails
.here:	pop	rcx
	ret
until_sent:
	push	rcx
	mov	ecx, 1000
.next:
	call	delay_100us
	mov	dx, COM + 5
	; (LSR must not be read here: that would clear OE. Time must do.)
	cmp	ecx, 950
	jb	.here
	loop	.next
.here:	pop	rcx
	ret

fifo:
	WRITE	2, 0x07				; on, both cleared, trigger 1
	READ	2
	KEEP	0xc0, 0xc0
	mov	bl, 0x30
	mov	ecx, 16
.fill:
	WRITE	0, bl
	call	delay_100us
	call	delay_100us
	inc	bl
	loop	.fill
	call	until_sent
	mov	bl, 0x30
	mov	ecx, 16
.empty:
	READ	5
	KEEP	0x03, 0x01
	READ	0
	movzx	esi, bl
	KEEP	0xff, esi
	inc	bl
	dec	ecx
	jnz	.empty
	READ	5
	KEEP	0x01, 0
	; Cleared by FCR.
	WRITE	0, 0x55
	call	until_data
	WRITE	2, 0x03
	READ	5
	KEEP	0x01, 0
	WRITE	2, 0
	READ	2
	KEEP	0xc0, 0
	ret

interrupts:
	HOOK	0x64, .note
	IOAPIC_PIN 4, 0x8000 | 0x64
	WRITE	4, 0x1b				; loopback, OUT2
	READ	6
	READ	5
	READ	0
	READ	2
	sti
	; Transmitter empty: at once when it is enabled, again when a byte has gone.
	call	irq_forget
	WRITE	1, 2
	mov	ecx, 2
	call	delay_ms
	mov	al, [IRQ_COUNT(0x64)]
	KEEP	0xff, 1
	mov	al, [iir]
	KEEP	0x0f, 2
	WRITE	1, 2
	mov	ecx, 2
	call	delay_ms
	; Received data.
	WRITE	1, 0
	READ	2
	call	irq_forget
	WRITE	1, 1
	WRITE	0, 0x66
	mov	ecx, 5
	call	delay_ms
	mov	al, [IRQ_COUNT(0x64)]
	KEEP	0xff, 1
	mov	al, [iir]
	KEEP	0x0f, 4
	mov	al, [data]
	KEEP	0xff, 0x66
	; FIFO with trigger 4: the fourth byte, or a time-out with fewer.
	WRITE	2, 0x47
	READ	2
	call	irq_forget
	WRITE	1, 1
	WRITE	0, 0x71
	mov	ecx, 600000			; four characters' time, and what the host takes
.timeout:
	call	delay_100us
	cmp	dword [IRQ_COUNT(0x64)], 0
	loope	.timeout
	mov	al, [iir]
	KEEP	0x0f, 0x0c			; character time-out
	mov	al, [data]
	KEEP	0xff, 0x71
	; Modem status.
	WRITE	2, 0
	call	irq_forget
	WRITE	1, 8
	WRITE	4, 0x1a				; DTR falls: DSR changes
	mov	ecx, 2
	call	delay_ms
	mov	al, [iir]
	KEEP	0x0f, 0
	; The order: line status, data, transmitter, modem.
	cli
	WRITE	1, 0
	READ	6
	READ	0
	WRITE	0, 0x11
	call	until_data
	WRITE	0, 0x12
	call	until_sent
	WRITE	4, 0x1b
	WRITE	1, 0x0f
	READ	2
	KEEP	0x0f, 6
	READ	5
	READ	2
	KEEP	0x0f, 4
	READ	0
	READ	2
	KEEP	0x0f, 2
	READ	2
	KEEP	0x0f, 0
	READ	6
	READ	2
	KEEP	0x0f, 1
	WRITE	1, 0
	IOAPIC_PIN 4, 0x10000
	ret
; Reads IIR once, does what ends the interrupt.
.note:	call	irq_note
	push	rdx
	READ	2
	mov	[iir], al
	and	al, 0x0f
	cmp	al, 6
	jne	.no_line
	READ	5
.no_line:
	cmp	byte [iir], 0x04
	je	.has_data
	mov	al, [iir]
	and	al, 0x0f
	cmp	al, 0x0c
	je	.has_data
	cmp	al, 4
	jne	.no_data
.has_data:
	READ	0
	mov	[data], al
.no_data:
	mov	al, [iir]
	and	al, 0x0f
	jnz	.no_modem
	READ	6
.no_modem:
	pop	rdx
	LAPIC_WRITE 0xb0, 0
	ret

section .bss
records: resb	12 * 256
section .data
kept:	dd 0
iir:	dd 0
data:	dd 0
