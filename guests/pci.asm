; PCI configuration mechanism 1: the address register, host and ISA bridge, absent functions, access widths.
%define GUEST "pci"
%define GUEST_BITS 64
%include "guest.inc"

; CONFIG device, function, register: its doubleword to EAX.
%macro CONFIG 3
	mov	eax, 0x80000000 | ((%1) << 11) | ((%2) << 8) | (%3)
	call	config
%endmacro
config:
	mov	dx, 0xcf8
	out	dx, eax
	mov	dx, 0xcfc
	in	eax, dx
	ret

guest_main:
	; The address register holds a doubleword, and is one only for doublewords.
	mov	dx, 0xcf8
	mov	eax, 0x80000000
	out	dx, eax
	xor	eax, eax
	in	eax, dx
	CHECK32	eax, 0x80000000
	mov	eax, 0xffffffff
	out	dx, eax
	in	eax, dx
	CHECK_BITS eax, 0x80ffff00, 0x80ffff00
	CHECK_BITS eax, 3, 0
	; The host bridge: 440FX.
	CONFIG	0, 0, 0
	CHECK32	eax, 0x12378086
	CONFIG	0, 0, 8
	shr	eax, 16
	CHECK32	eax, 0x0600			; host bridge
	CONFIG	0, 0, 0x0c
	CHECK_BITS eax, 0x007f0000, 0
	; The ISA bridge: PIIX3 or its like, with several functions.
	CONFIG	1, 0, 0
	CHECK_BITS eax, 0xffff, 0x8086
	CONFIG	1, 0, 8
	shr	eax, 16
	CHECK32	eax, 0x0601
	; Bytes and words of the data register.
	CONFIG	0, 0, 0
	mov	dx, 0xcfe
	xor	eax, eax
	in	ax, dx
	CHECK32	eax, 0x1237
	mov	dx, 0xcfd
	xor	eax, eax
	in	al, dx
	CHECK32	eax, 0x80
	; What is not there reads as ones, and swallows writes.
	CONFIG	31, 0, 0
	CHECK32	eax, 0xffffffff
	CONFIG	0, 7, 0
	CHECK32	eax, 0xffffffff
	mov	dx, 0xcfc
	xor	eax, eax
	out	dx, eax
	CONFIG	31, 7, 0xfc
	CHECK32	eax, 0xffffffff
	mov	eax, 0x80000000 | (255 << 16)
	call	config
	CHECK32	eax, 0xffffffff
	; Without the enable bit the data port is nobody's.
	mov	dx, 0xcf8
	xor	eax, eax
	out	dx, eax
	mov	dx, 0xcfc
	in	eax, dx
	CHECK32	eax, 0xffffffff
	; Identity registers are read-only.
	CONFIG	0, 0, 0
	mov	dx, 0xcfc
	mov	eax, 0x12345678
	out	dx, eax
	CONFIG	0, 0, 0
	CHECK32	eax, 0x12378086
	; The PIRQ registers hold.
	CONFIG	1, 0, 0x60
	mov	ebx, eax
	mov	dx, 0xcfc
	mov	al, 0x0b
	out	dx, al
	CONFIG	1, 0, 0x60
	CHECK_BITS eax, 0xff, 0x0b
	mov	dx, 0xcfc
	mov	eax, ebx
	out	dx, eax
	; A scan of the bus ends, and finds no function twice.
	xor	ebx, ebx
	xor	r12d, r12d
.scan:
	mov	eax, ebx
	shl	eax, 8
	or	eax, 0x80000000
	call	config
	cmp	ax, -1
	je	.absent
	inc	r12d
.absent:
	inc	ebx
	cmp	ebx, 256
	jb	.scan
	cmp	r12d, 2
	HOLDS	ae, "functions on bus 0"
	ret
