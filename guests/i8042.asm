; The keyboard controller: self-test, command byte, output port and A20, keyboard and mouse queues by the controller's
; own loop-back commands, interrupts, reset line left alone (8042, PS/2 reference).
%define GUEST "i8042"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

%macro COMMAND 1
	mov	al, %1
	call	send_command
%endmacro
%macro DATA 1
	mov	al, %1
	call	send_data
%endmacro
%macro ANSWER 0				; AL; 0FFFFFFFFh in EAX: none
	call	get_answer
%endmacro

send_command:
	push	rcx
	push	rax
	mov	ecx, 600000
.wait:
	in	al, 0x64
	test	al, 2
	jz	.ready
	call	delay_100us
	loop	.wait
.ready:
	pop	rax
	out	0x64, al
	pop	rcx
	ret
send_data:
	push	rcx
	push	rax
	mov	ecx, 600000
.wait:
	in	al, 0x64
	test	al, 2
	jz	.ready
	call	delay_100us
	loop	.wait
.ready:
	pop	rax
	out	0x60, al
	pop	rcx
	ret
get_answer:
	push	rcx
	mov	ecx, 600000
.wait:
	in	al, 0x64
	test	al, 1
	jnz	.here
	call	delay_100us
	loop	.wait
	mov	eax, -1
	pop	rcx
	ret
.here:
	mov	[status], al
	in	al, 0x60
	movzx	eax, al
	pop	rcx
	ret
flush:
	push	rcx
	mov	ecx, 64
.next:
	in	al, 0x64
	test	al, 1
	jz	.empty
	in	al, 0x60
	loop	.next
.empty:
	pop	rcx
	ret

guest_main:
	call	apic_enable
	call	flush
	COMMAND	0xad
	COMMAND	0xa7
	call	flush
	; Self-test, and the interfaces' tests.
	COMMAND	0xaa
	ANSWER
	CHECK32	eax, 0x55
	COMMAND	0xab
	ANSWER
	CHECK32	eax, 0
	COMMAND	0xa9
	ANSWER
	CHECK32	eax, 0
	; The command byte.
	COMMAND	0x60
	DATA	0x30				; both disabled, no interrupts
	COMMAND	0x20
	ANSWER
	CHECK_BITS eax, 0x33, 0x30
	COMMAND	0xae
	COMMAND	0x20
	ANSWER
	CHECK_BITS eax, 0x10, 0
	COMMAND	0xa8
	COMMAND	0x20
	ANSWER
	CHECK_BITS eax, 0x20, 0
	COMMAND	0x60
	DATA	0x04				; enabled, no translation
	; The output port: reset is high, A20 as it is set.
	COMMAND	0xd0
	ANSWER
	CHECK_BITS eax, 1, 1
	CHECK_BITS eax, 2, 2
	; D2 puts a byte into the keyboard's buffer, D3 into the mouse's.
	COMMAND	0xd2
	DATA	0x5a
	ANSWER
	CHECK32	eax, 0x5a
	CHECK_BITS [status], 0x20, 0
	COMMAND	0xd3
	DATA	0xa5
	ANSWER
	CHECK32	eax, 0xa5
	CHECK_BITS [status], 0x20, 0x20
	; The keyboard answers: echo, identify, reset.
	DATA	0xee
	ANSWER
	CHECK32	eax, 0xee
	DATA	0xf2
	ANSWER
	CHECK32	eax, 0xfa
	ANSWER
	CHECK32	eax, 0xab
	ANSWER
	CHECK32	eax, 0x83
	DATA	0xf5
	ANSWER
	CHECK32	eax, 0xfa
	DATA	0xed				; LEDs
	ANSWER
	CHECK32	eax, 0xfa
	DATA	0x07
	ANSWER
	CHECK32	eax, 0xfa
	DATA	0xff
	ANSWER
	CHECK32	eax, 0xfa
	ANSWER
	CHECK32	eax, 0xaa
	; The mouse: reset, identify.
	COMMAND	0xd4
	DATA	0xff
	ANSWER
	CHECK32	eax, 0xfa
	CHECK_BITS [status], 0x20, 0x20
	ANSWER
	CHECK32	eax, 0xaa
	ANSWER
	CHECK32	eax, 0
	COMMAND	0xd4
	DATA	0xf2
	ANSWER
	CHECK32	eax, 0xfa
	ANSWER
	CHECK32	eax, 0
	COMMAND	0xd4
	DATA	0xe9				; status: three bytes
	ANSWER
	CHECK32	eax, 0xfa
	ANSWER
	ANSWER
	ANSWER
	cmp	eax, -1
	HOLDS	ne, "mouse status"
	call	flush
	in	al, 0x64
	CHECK_BITS eax, 1, 0
	; Interrupts: IRQ 1 and IRQ 12, by the I/O APIC.
	HOOK	0x65, .keyboard
	HOOK	0x66, .keyboard
	IOAPIC_PIN 1, 0x65
	IOAPIC_PIN 12, 0x66
	COMMAND	0x60
	DATA	0x07
	call	irq_forget
	sti
	COMMAND	0xd2
	DATA	0x31
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x65)], 1
	CHECK32	[seen], 0x31
	DATA	0xee
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x65)], 2
	CHECK32	[seen], 0xee
	COMMAND	0xd3
	DATA	0x32
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(0x66)], 1
	CHECK32	[seen], 0x32
	cli
	COMMAND	0x60
	DATA	0x04
	IOAPIC_PIN 1, 0x10000
	IOAPIC_PIN 12, 0x10000
	; A20 by port 92h: addresses wrap or not, and it can be read back.
	in	al, 0x92
	CHECK_BITS eax, 3, 2
	; A20 cannot be off in long mode's own code here, so it is only set again.
	or	al, 2
	out	0x92, al
	; Port 61h: the speaker bits hold.
	in	al, 0x61
	mov	bl, al
	and	al, 0xfc
	or	al, 2
	out	0x61, al
	in	al, 0x61
	CHECK_BITS eax, 3, 2
	mov	al, bl
	out	0x61, al
	ret
.keyboard:
	call	irq_note
	in	al, 0x60
	movzx	eax, al
	mov	[seen], eax
	LAPIC_WRITE 0xb0, 0
	ret

section .data
status:	dd 0
seen:	dd 0
