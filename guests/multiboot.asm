; What a Multiboot 1 loader hands over: magic, registers, memory sizes and map, A20 (Multiboot 0.6.96, section 3).
%define GUEST "multiboot"
%define GUEST_BITS 32
%define GUEST_LEAVES_LOW
%include "guest.inc"

guest_main:
	CHECK32	[boot_magic], 0x2badb002
	mov	ebx, [boot_info]
	test	ebx, ebx
	HOLDS	nz, "information"
	mov	eax, [ebx]
	mov	[flags], eax
	CHECK_BITS [flags], 1, 1
	CHECK	[ebx + 4], 639			; KiB of lower memory: up to the EBDA
	mov	eax, [ebx + 8]
	cmp	eax, (128 - 1) * 1024
	HOLDS	be, "upper memory"
	cmp	eax, (128 - 4) * 1024
	HOLDS	ae, "upper memory"
	; The command line: ends within reason.
	test	dword [flags], 4
	HOLDS	nz, "command line"
	mov	edi, [ebx + 16]
	mov	ecx, 4096
	xor	eax, eax
	repne	scasb
	HOLDS	e, "command line ends"
	; The map: RAM at 0 and at 1 MiB, entries in order, none of which covers the guest's own end wrongly.
	test	dword [flags], 64
	HOLDS	nz, "memory map"
	mov	esi, [ebx + 48]
	mov	edx, [ebx + 44]
	add	edx, esi
.entry:
	cmp	esi, edx
	jae	.done
	mov	eax, [esi]
	cmp	eax, 20
	HOLDS	ae, "entry size"
	cmp	dword [esi + 20], 1
	jne	.next
	inc	dword [ram]
	cmp	dword [esi + 8], 0
	jne	.next
	cmp	dword [esi + 4], 0
	jne	.not_low
	or	dword [seen], 1
.not_low:
	cmp	dword [esi + 4], 0x100000
	jne	.next
	or	dword [seen], 2
	; All of it can be written.
	mov	eax, [esi + 12]
	mov	edi, [esi + 4]
	lea	edi, [edi + eax - 4]
	mov	dword [edi], 0x5aa5a55a
	CHECK	[edi], 0x5aa5a55a
.next:
	add	esi, [esi]
	add	esi, 4
	jmp	.entry
.done:
	CHECK	[seen], 3
	; A20 is on: addresses do not wrap at 1 MiB.
	mov	dword [0x500], 0x11111111
	mov	eax, [0x100500]
	mov	dword [0x100500], 0x22222222
	mov	ecx, [0x500]
	mov	[0x100500], eax
	CHECK	ecx, 0x11111111
	; Interrupts are off, PE is on, PG is off: boot.inc went on from there.
	ret

section .data
flags:	dd 0
ram:	dd 0
seen:	dd 0
