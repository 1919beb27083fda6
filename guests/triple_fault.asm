; A triple fault is a shutdown: the VMM must say so (status 3).
%define GUEST "triple_fault"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	PRINT	GUEST, ": on its way", 10
	mov	word [idtr], 0
	lidt	[idtr]
	ud2
	FAILED	"went on after a triple fault"
	ret
