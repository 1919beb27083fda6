; 32-bit code with flat segments, as systems run it, while segments change under it: the same few routines are called
; with every kind of FS, and with DS and ES flat and not. A translator that has made code of them must not notice less.
%define GUEST "flat32"
%define GUEST_BITS 32
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)
BASE	equ	FREE_MEMORY

; TOUCH routine, selector, offset, vector: the routine with EBX the selector and ECX the offset.
%define TOUCH TOUCH_ __?LINE?__,
%macro TOUCH_ 5
	mov	ebx, %3
	mov	ecx, %4
	CATCH	%%resume
	call	%2
%%resume:
	CAUGHT_	%1, %5, 0
%endmacro
; All routines, twice, so that one that has faulted runs again.
%define TOUCH_ALL TOUCH_ALL_ __?LINE?__,
%macro TOUCH_ALL_ 5			; selector, offset, vector of a read, of a write
%rep 2
	TOUCH_	%1, read_fs, %2, %3, %4
	TOUCH_	%1, write_fs, %2, %3, %5
	TOUCH_	%1, add_fs, %2, %3, %5
	TOUCH_	%1, push_fs, %2, %3, %4
	TOUCH_	%1, pop_fs, %2, %3, %5
%endrep
%endmacro

guest_main:
	call	fs_kinds
	call	fill
	call	fs_values
	call	fill
	call	data_changes
	call	wraps
	call	end_of_4g
	call	in_a_loop
	call	user_level
	ret

; Each doubleword holds its address.
fill:	mov	edi, BASE
	mov	ecx, 0x4000
.next:	mov	[edi], edi
	add	edi, 4
	loop	.next
	ret

; ---- the routines ----

read_fs:
	mov	fs, ebx
	mov	eax, [fs:ecx]
	ret
write_fs:
	mov	fs, ebx
	mov	[fs:ecx], eax
	ret
add_fs:
	mov	fs, ebx
	add	dword [fs:ecx + 4 - 4], 0
	ret
push_fs:
	mov	fs, ebx
	push	dword [fs:ecx]
	pop	eax
	ret
pop_fs:
	push	fs
	mov	fs, ebx
	pop	dword [fs:ecx]
	ret

fs_kinds:
	TOUCH_ALL SEL_DATA, BASE, -1, -1
	; Small, expand-up: bytes 0 to 0xfff.
	SET_DESCRIPTOR S(0), BASE, 0xfff, 0x4093
	TOUCH_ALL S(0), 0, -1, -1
	TOUCH_ALL S(0), 0xffc, -1, -1
	TOUCH_ALL S(0), 0xffd, EXC_GP, EXC_GP
	TOUCH_ALL S(0), 0x1000, EXC_GP, EXC_GP
	TOUCH_ALL S(0), 0xffffffff, EXC_GP, EXC_GP
	TOUCH_ALL S(0), 8, -1, -1
	; Expand-down: from 1000h on.
	SET_DESCRIPTOR S(1), BASE, 0xfff, 0x4097
	TOUCH_ALL S(1), 0, EXC_GP, EXC_GP
	TOUCH_ALL S(1), 0xffd, EXC_GP, EXC_GP
	TOUCH_ALL S(1), 0x1000, -1, -1
	TOUCH_ALL S(1), 0xfffffffd, EXC_GP, EXC_GP
	; Read-only, and code that can be read.
	SET_DESCRIPTOR S(2), BASE, 0xfff, 0x4091
	TOUCH_ALL S(2), 0, -1, EXC_GP
	SET_DESCRIPTOR S(3), BASE, 0xfff, 0x409b
	TOUCH_ALL S(3), 0, -1, EXC_GP
	; Null.
	TOUCH_ALL 0, 0, EXC_GP, EXC_GP
	TOUCH_ALL SEL_DATA, BASE, -1, -1
	; 4 GiB from another base: it wraps.
	SET_DESCRIPTOR S(4), 0xfffff000, 0xfffff, 0xc093
	TOUCH_ALL S(4), BASE + 0x1000, -1, -1
	TOUCH_ALL S(4), 0xfffffffd, EXC_GP, EXC_GP
	; One byte.
	SET_DESCRIPTOR S(5), BASE, 0, 0x4093
	TOUCH_ALL S(5), 0, EXC_GP, EXC_GP
	ret

fs_values:
	mov	ecx, 0x20
	mov	ebx, S(0)
	call	read_fs
	CHECK	eax, BASE + 0x20
	mov	ebx, S(1)
	mov	ecx, 0x1020
	call	read_fs
	CHECK	eax, BASE + 0x1020
	mov	ebx, S(4)
	mov	ecx, BASE + 0x1044
	call	read_fs
	CHECK	eax, BASE + 0x44
	mov	eax, 0x12345678
	call	write_fs
	CHECK	[BASE + 0x44], 0x12345678
	call	push_fs
	CHECK	eax, 0x12345678
	mov	ebx, SEL_DATA
	mov	ecx, BASE + 0x44
	call	pop_fs
	CHECK	[BASE + 0x44], S(4)
	; Nothing moves when it faults.
	mov	ebx, S(0)
	mov	ecx, 0x2000
	lea	edx, [esp - 8]
	CATCH	.fault
	call	pop_fs
.fault:	CAUGHT	EXC_GP, 0
	CHECK	[caught_xsp], edx
	mov	eax, SEL_DATA
	mov	fs, eax
	ret

; ---- DS and ES ----

; DS becomes EBX for one access in the midst of others.
with_ds:
	push	ds
	push	es
	mov	eax, [BASE]
	mov	edx, ds
	mov	ds, ebx
	mov	esi, [ecx]
	mov	ds, edx
	add	eax, [BASE + 4]
	pop	es
	pop	ds
	ret
; The same with ES, by POP.
with_es:
	push	es
	push	ebx
	pop	es
	mov	esi, [es:ecx]
	mov	[es:ecx], esi
	pop	es
	ret

data_changes:
	SET_DESCRIPTOR S(6), BASE + 0x1000, 0xff, 0x4093
	mov	ebp, 3
.again:	mov	ebx, SEL_DATA
	mov	ecx, BASE + 0x10
	call	with_ds
	CHECK	esi, BASE + 0x10
	mov	eax, [BASE]
	call	with_es
	CHECK	esi, BASE + 0x10
	mov	ebx, S(6)
	mov	ecx, 0x10
	call	with_ds
	CHECK	esi, BASE + 0x1010
	CHECK	eax, BASE + BASE + 4
	mov	esi, 0
	call	with_es
	CHECK	esi, BASE + 0x1010
	mov	ecx, 0xfd
	CATCH	.ds
	call	with_ds
.ds:	mov	edx, SEL_DATA		; ESP is back: the routine's own does not come
	mov	ds, edx
	CAUGHT	EXC_GP, 0
	CATCH	.es
	call	with_es
.es:	mov	edx, SEL_DATA
	mov	es, edx
	CAUGHT	EXC_GP, 0
	dec	ebp
	jnz	.again
	ret

; ---- addresses ----

add_up:
	lea	edx, [ebx + ecx * 4 + 0x7fffffff]
	mov	eax, [ebx + ecx * 4 + 0x7fffffff]
	add	[ebx + ecx * 4 + 0x7fffffff], esi
	ret

wraps:
	mov	dword [BASE + 0x100], 1000
	mov	esi, 3
	mov	ebx, 0x80000001
	mov	ecx, (BASE + 0x100) / 4
	call	add_up
	CHECK	edx, BASE + 0x100
	CHECK	eax, 1000
	mov	ebx, BASE + 0x101
	mov	ecx, 0x20000000
	call	add_up
	CHECK	edx, BASE + 0x100
	CHECK	eax, 1003
	CHECK	[BASE + 0x100], 1006
	ret

; ECX is the address.
load_4:	mov	eax, [ecx]
	ret
store_4:
	mov	[ecx], eax
	ret
add_4:	lock add [ecx], eax
	ret

end_of_4g:
%define AT_END AT_END_ __?LINE?__,
%macro AT_END_ 3				; routine, ECX
	mov	ecx, %3
	CATCH	%%resume
	call	%2
%%resume:
	CAUGHT_	%1, EXC_GP, 0
%endmacro
; The stack's end, at CPL 3, where exceptions come with a stack of their own.
%define STACK_END STACK_END_ __?LINE?__,
%macro STACK_END_ 3+			; ESP, instruction
	jmp	%%past
%%at:	mov	esp, %2
%%fault:
	%3
	ud2
%%past:
	USER	%%at
	CAUGHT_	%1, EXC_SS, 0, %%fault
	CHECK_	%1, [caught_xsp], %2
%endmacro
%rep 2
	AT_END	load_4, 0xfffffffd
	AT_END	load_4, 0xffffffff
	AT_END	store_4, 0xfffffffe
	AT_END	add_4, 0xfffffffe
	mov	ecx, BASE + 0x200
	call	load_4
	CHECK	eax, BASE + 0x200
	STACK_END 2, push eax
	STACK_END 3, push dword [BASE]
	STACK_END 0xfffffffe, pop eax
	STACK_END 0xfffffffd, pop dword [BASE]
	STACK_END 1, call load_4
	STACK_END 0xffffffff, ret
	STACK_END 2, push ds
%endrep
	; ESP wraps where the access does not.
	jmp	.past
.at:	mov	esp, 4
	push	eax
	ud2
.past:	mov	esi, [0]
	mov	eax, esi
	USER	.at
	CAUGHT	EXC_UD, 0
	CHECK	[caught_xsp], 0
	ret

; ---- a loop that changes what it reads through ----

in_a_loop:
	call	fill
	SET_DESCRIPTOR S(7), BASE, 0x7f, 0x4093
	SET_DESCRIPTOR S(8), BASE + 0x1000, 0x7f, 0x4093
	xor	esi, esi
	mov	ecx, 2000
	mov	ebx, S(7)
.next:	mov	fs, ebx
	mov	gs, ebx
	mov	edx, ecx
	and	edx, 0x7c
	add	esi, [fs:edx]
	sub	esi, BASE
	sub	esi, edx
	add	esi, [gs:edx]
	sub	esi, BASE
	sub	esi, edx
	xor	ebx, S(7) ^ S(8)
	dec	ecx
	jnz	.next
	CHECK	esi, 1000 * 0x2000
	; A limit that comes down in mid-run.
	mov	ecx, 100
	CATCH	.out
.down:	mov	eax, ecx
	dec	eax
	mov	[gdt + S(7)], al
	mov	ebx, S(7)
	mov	fs, ebx
	mov	eax, [fs:8]
	dec	ecx
	jmp	.down
.out:	CAUGHT	EXC_GP, 0
	CHECK	ecx, 11
	mov	eax, SEL_DATA
	mov	fs, eax
	mov	gs, eax
	ret

user_level:
	SET_DESCRIPTOR S(0), BASE, 0xfff, 0x40f3
	mov	ebx, S(0) | 3
	mov	ecx, 0xffd
	USER	.read
	CAUGHT	EXC_GP, 0, .fault
	mov	ecx, 0xffc
	USER	.read
	CAUGHT	EXC_UD, 0, .end
	CHECK	eax, BASE + 0xffc
	mov	ecx, 10000
	xor	eax, eax
	USER	.loop
	CAUGHT	EXC_UD, 0, .loop_end
	CHECK	eax, 10000
	; The kernel's own segments have not become the user's.
	mov	eax, ds
	CHECK	eax, SEL_DATA
	mov	eax, SEL_DATA
	mov	fs, eax
	ret
.read:	mov	fs, ebx
.fault:	mov	eax, [fs:ecx]
.end:	ud2
.loop:	push	ecx
	call	.one
	pop	ecx
	dec	ecx
	jnz	.loop
.loop_end:
	ud2
.one:	inc	eax
	ret
