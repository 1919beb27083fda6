; The MC146818 clock: time that goes on, formats, update flag, alarm, periodic and update interrupts, CMOS memory.
%define GUEST "rtc"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

; CMOS_READ register: AL
%macro CMOS_READ 1
	mov	al, %1
	out	0x70, al
	in	al, 0x71
%endmacro
%macro CMOS_WRITE 2
	mov	al, %1
	out	0x70, al
	mov	al, %2
	out	0x71, al
%endmacro

guest_main:
	call	apic_enable
	call	values
	call	goes_on
	call	set_and_keep
	call	interrupts
	ret

values:
	CMOS_READ 0x0d
	CHECK_BITS eax, 0x80, 0x80		; the battery is fine
	CMOS_READ 0x0b
	CHECK_BITS eax, 0x86, 0x02		; 24 hours, BCD, running
	call	read_time
	; BCD digits in their ranges.
	mov	ecx, 7
	mov	esi, time
.digits:
	mov	al, [rsi]
	and	al, 0x0f
	cmp	al, 10
	HOLDS	b, "BCD digit"
	inc	esi
	loop	.digits
	cmp	byte [time], 0x60
	HOLDS	b, "seconds"
	cmp	byte [time + 1], 0x60
	HOLDS	b, "minutes"
	cmp	byte [time + 2], 0x24
	HOLDS	b, "hours"
	cmp	byte [time + 3], 7
	HOLDS	be, "day of the week"
	cmp	byte [time + 4], 0x31
	HOLDS	be, "day"
	cmp	byte [time + 5], 0x12
	HOLDS	be, "month"
	CMOS_READ 0x32
	CHECK_BITS eax, 0xff, 0x20		; the century
	; CMOS memory holds what is written; some of it is the firmware's.
	CMOS_READ 0x50
	mov	bl, al
	CMOS_WRITE 0x50, 0xa5
	CMOS_WRITE 0x51, 0x5a
	CMOS_READ 0x50
	CHECK_BITS eax, 0xff, 0xa5
	CMOS_WRITE 0x50, bl
	; Bit 7 of the index is the NMI mask, not part of the address.
	mov	al, 0x8d
	out	0x70, al
	in	al, 0x71
	CHECK_BITS eax, 0x80, 0x80
	xor	eax, eax
	out	0x70, al
	ret

; Seconds, minutes, hours, week day, day, month, year: when no update is under way.
read_time:
	mov	edi, time
.wait:
	CMOS_READ 0x0a
	test	al, 0x80
	jnz	.wait
	mov	esi, registers
	mov	ecx, 7
.next:
	mov	al, [rsi]
	out	0x70, al
	in	al, 0x71
	mov	[rdi], al
	inc	esi
	inc	edi
	loop	.next
	ret

; The host may be away at any moment: a second must stay for 30 ms once in several tries.
goes_on:
	mov	ebp, 20
.try:
	; A second changes within 1.2 seconds, and then not at once again.
	CMOS_READ 0
	mov	bl, al
	mov	ecx, 12000
.first:
	call	delay_100us
	CMOS_READ 0
	cmp	al, bl
	jne	.changed
	loop	.first
	FAILED	"the seconds stand"
	ret
.changed:
	call	check_passed
	mov	bl, al
	mov	ecx, 30
	call	delay_ms
	CMOS_READ 0
	cmp	al, bl
	je	.stayed
	dec	ebp
	jnz	.try
.stayed:
	test	ebp, ebp
	HOLDS	nz, "the same second for a while"
	ret

set_and_keep:
	; SET stops updates; binary format; then the time runs over.
	call	read_time
	mov	rax, [time]
	mov	[saved], rax
	CMOS_READ 0x0b
	mov	bl, al
	or	al, 0x84			; SET, binary
	mov	bh, al
	CMOS_WRITE 0x0b, bh
	CMOS_WRITE 0, 59
	CMOS_WRITE 2, 59
	CMOS_WRITE 4, 23
	CMOS_WRITE 7, 31
	CMOS_WRITE 8, 12
	CMOS_WRITE 9, 99
	CMOS_WRITE 0x32, 20
	mov	ecx, 1300
	call	delay_ms
	CMOS_READ 0
	CHECK_BITS eax, 0xff, 59
	and	bh, 0x7f
	CMOS_WRITE 0x0b, bh
	mov	ecx, 30000
.until:
	call	delay_100us
	CMOS_READ 0
	cmp	al, 59
	jne	.over
	loop	.until
.over:
	CMOS_READ 0
	cmp	al, 50				; few, but the host may have been away
	HOLDS	b, "seconds after the turn"
	CMOS_READ 2
	CHECK_BITS eax, 0xff, 0
	CMOS_READ 4
	CHECK_BITS eax, 0xff, 0
	CMOS_READ 7
	CHECK_BITS eax, 0xff, 1
	CMOS_READ 8
	CHECK_BITS eax, 0xff, 1
	CMOS_READ 9
	CHECK_BITS eax, 0xff, 0
	; 12 hours: 13 o'clock is 1 with bit 7.
	mov	bh, bl
	or	bh, 0x84
	CMOS_WRITE 0x0b, bh
	CMOS_WRITE 4, 13
	CMOS_WRITE 0, 0
	mov	bh, bl
	or	bh, 0x04
	and	bh, 0xfd
	CMOS_WRITE 0x0b, bh
	CMOS_WRITE 0x0b, bl
	; Back to what it was.
	mov	bh, bl
	or	bh, 0x80
	CMOS_WRITE 0x0b, bh
	CMOS_WRITE 0x32, 0x20
	mov	esi, registers
	mov	edi, saved
	mov	ecx, 7
.restore:
	mov	al, [rsi]
	out	0x70, al
	mov	al, [rdi]
	out	0x71, al
	inc	esi
	inc	edi
	loop	.restore
	CMOS_WRITE 0x0b, bl
	ret

; RTC_QUIET: its interrupts off, those on their way taken and forgotten. What is enabled after it interrupts with the next
; event, or at once when there was one since. Register B is as in BL; interrupts are disabled.
%macro RTC_QUIET 0
	cli
	CMOS_WRITE 0x0b, bl
	CMOS_READ 0x0c
	sti
	nop
	nop
	cli
	call	irq_forget
%endmacro
; RTC_ENABLE bits of B: and interrupts of the processor.
%macro RTC_ENABLE 1
	mov	bh, bl
	or	bh, %1
	CMOS_WRITE 0x0b, bh
	sti
%endmacro

interrupts:
	; By way of the I/O APIC, pin 8.
	HOOK	0x62, .handler
	IOAPIC_PIN 8, 0x62
	CMOS_WRITE 0x0a, 0x26
	CMOS_READ 0x0b
	mov	bl, al
	; Periodic: 1024 Hz.
	RTC_QUIET
	RTC_ENABLE 0x40
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 20
	CHECK_BITS [status], 0xc0, 0xc0		; IRQF and PF
	; Without reading register C there is no further one.
	RTC_QUIET
	HOOK	0x62, irq_apic
	RTC_ENABLE 0x40
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 1
	mov	ecx, 50
	call	delay_ms
	CHECK32	[IRQ_COUNT(0x62)], 1
	CMOS_READ 0x0c
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 2
	; Update-ended: once a second.
	RTC_QUIET
	HOOK	0x62, .handler
	RTC_ENABLE 0x10
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 1
	CHECK_BITS [status], 0x90, 0x90
	; Alarm at every second (all bytes say "any").
	RTC_QUIET
	CMOS_WRITE 1, 0xff
	CMOS_WRITE 3, 0xff
	CMOS_WRITE 5, 0xff
	RTC_ENABLE 0x20
	WAIT_UNTIL ae, cmp dword [IRQ_COUNT(0x62)], 1
	CHECK_BITS [status], 0xa0, 0xa0
	; Flags without enables: no IRQF.
	RTC_QUIET
	mov	ecx, 1100
	call	delay_ms
	CMOS_READ 0x0c
	CHECK_BITS eax, 0x80, 0
	CHECK_BITS eax, 0x10, 0x10
	IOAPIC_PIN 8, 0x10000
	ret
.handler:
	call	irq_note
	CMOS_READ 0x0c
	mov	[status], al
	LAPIC_WRITE 0xb0, 0
	ret

section .data
	align	8
time:	dq 0
saved:	dq 0
registers: db 0, 2, 4, 6, 7, 8, 9
status:	dd 0
