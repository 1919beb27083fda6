; QEMU's fw_cfg at 510h: signature, interface ID, directory, reads by port and by DMA, items beyond their end.
%define GUEST "fw_cfg"
%define GUEST_BITS 64
%include "guest.inc"

%macro SELECT 1
	mov	dx, 0x510
	mov	ax, %1
	out	dx, ax
%endmacro

section .bss
	alignb	16
control: resb	16
buffer:	resb	4096
section .text

; ECX bytes of the selected item to RDI.
read_item:
	mov	dx, 0x511
	rep	insb
	ret

guest_main:
	SELECT	0
	mov	edi, buffer
	mov	ecx, 4
	call	read_item
	CHECK32	[buffer], "QEMU"
	; Behind the end: zeros.
	mov	edi, buffer
	mov	ecx, 4
	call	read_item
	CHECK32	[buffer], 0
	; Selecting starts again.
	SELECT	0
	mov	dx, 0x511
	in	al, dx
	CHECK_BITS eax, 0xff, "Q"
	SELECT	1
	mov	edi, buffer
	mov	ecx, 4
	call	read_item
	CHECK_BITS [buffer], 1, 1
	mov	r12d, [buffer]
	; The number of processors.
	SELECT	5
	mov	edi, buffer
	mov	ecx, 2
	call	read_item
	CHECK16	[buffer], 1
	; An item that does not exist.
	SELECT	0x3fff
	mov	dx, 0x511
	in	al, dx
	CHECK_BITS eax, 0xff, 0
	; The directory: a big-endian count, entries of 64 bytes, names that end.
	SELECT	0x19
	mov	edi, buffer
	mov	ecx, 4
	call	read_item
	mov	ebx, [buffer]
	bswap	ebx
	cmp	ebx, 256
	HOLDS	b, "number of files"
	mov	ebp, ebx
.entry:
	test	ebp, ebp
	jz	.entries_done
	mov	edi, buffer
	mov	ecx, 64
	call	read_item
	CHECK8	[buffer + 63], 0
	mov	ax, [buffer + 4]
	xchg	al, ah
	cmp	ax, 0x20
	HOLDS	ae, "file's selector"
	dec	ebp
	jmp	.entry
.entries_done:
	test	r12d, 2
	jnz	.dma
	PRINT	GUEST, ": no DMA", 10
	ret
.dma:
	; "QEMU CFG" in the address register.
	mov	dx, 0x514
	in	eax, dx
	CHECK32	eax, "QEMU"
	mov	dx, 0x518
	in	eax, dx
	CHECK32	eax, " CFG"
	; Select and read: control 0Ah, selector 0.
	mov	dword [buffer], 0
	mov	dword [control], 0x0a000000
	mov	dword [control + 4], 0x04000000
	mov	rax, buffer
	call	transfer
	CHECK32	[control], 0
	CHECK32	[buffer], "QEMU"
	; Skip two bytes, read two.
	mov	dword [control], 0x0c000000
	mov	dword [control + 4], 0x02000000
	call	transfer
	mov	dword [buffer], 0
	mov	dword [control], 0x02000000
	mov	dword [control + 4], 0x02000000
	mov	rax, buffer
	call	transfer
	CHECK16	[buffer], "MU"
	; To where there is no memory: the error bit.
	mov	dword [control], 0x0a000000
	mov	dword [control + 4], 0x04000000
	mov	rax, 0x7ffffffffff000
	call	transfer
	CHECK_BITS [control], 0x01000000, 0x01000000
	ret

; The transfer that `control` describes, from or to RAX.
transfer:
	bswap	rax
	mov	[control + 8], rax
	mov	dx, 0x514
	xor	eax, eax
	out	dx, eax
	mov	eax, control
	bswap	eax
	mov	dx, 0x518
	out	dx, eax
	mov	ecx, 10000
.wait:
	mov	eax, [control]
	bswap	eax
	test	eax, ~1
	jz	.done
	pause
	loop	.wait
.done:
	ret
