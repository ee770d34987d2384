// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A Linux guest's input and output, by the counter, which counts instructions of the whole machine:
//
//   [IO] operation=NAME instructions=N operations=N bytes=N
//
// Block I/O goes past the guest's page cache. "-16": sixteen requests are given to the kernel by one call, and waited for together.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

enum { DISK = 16 << 20, LARGE = 64 << 10, SMALL = 4 << 10, RANDOM = 1024, DEPTH = 16, CONSOLE = 64 << 10, ROUNDS = 5 };

static char buffer[DEPTH * LARGE] __attribute__((aligned(4096)));
static uint64_t state;
static aio_context_t context;

static uint64_t now(void)
{
	uint64_t value;

	asm volatile("isb\n mrs %0, cntvct_el0" : "=r"(value) :: "memory");
	return value;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The same places in each run. */
static off_t place(void)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (off_t)(state >> 33) % (DISK / SMALL) * SMALL;
}

static void one(int fd, int write, off_t at, size_t size)
{
	ssize_t done = write ? pwrite(fd, buffer, size, at) : pread(fd, buffer, size, at);

	if (done != (ssize_t)size)
		die("disk");
}

static void sixteen(int fd, int write)
{
	struct iocb requests[DEPTH], *pointers[DEPTH];
	struct io_event events[DEPTH];

	memset(requests, 0, sizeof requests);
	for (int n = 0; n < DEPTH; n++) {
		requests[n].aio_fildes = fd;
		requests[n].aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
		requests[n].aio_buf = (uintptr_t)(buffer + n * SMALL);
		requests[n].aio_nbytes = SMALL;
		requests[n].aio_offset = place();
		pointers[n] = &requests[n];
	}
	if (syscall(SYS_io_submit, context, DEPTH, pointers) != DEPTH)
		die("io_submit");
	if (syscall(SYS_io_getevents, context, DEPTH, DEPTH, events, NULL) != DEPTH)
		die("io_getevents");
	for (int n = 0; n < DEPTH; n++)
		if (events[n].res != SMALL)
			die("request");
}

static void report(const char *name, uint64_t start, unsigned operations, unsigned bytes)
{
	uint64_t end = now();

	printf("[IO] operation=%s instructions=%llu operations=%u bytes=%u\n", name, (unsigned long long)(end - start),
	       operations, bytes);
	fflush(stdout);
	tcdrain(1);
}

static void disk(int fd, int write)
{
	uint64_t start = now();

	for (off_t at = 0; at < DISK; at += LARGE)
		one(fd, write, at, LARGE);
	report(write ? "seq-write" : "seq-read", start, DISK / LARGE, DISK);

	state = 1;
	start = now();
	for (int n = 0; n < RANDOM; n++)
		one(fd, write, place(), SMALL);
	report(write ? "rand-write" : "rand-read", start, RANDOM, RANDOM * SMALL);

	start = now();
	for (int n = 0; n < RANDOM; n += DEPTH)
		sixteen(fd, write);
	report(write ? "rand-write-16" : "rand-read-16", start, RANDOM, RANDOM * SMALL);
}

static void console(const char *path, const char *name, unsigned bytes)
{
	int fd = open(path, O_WRONLY | O_NOCTTY);
	uint64_t start;

	if (fd < 0)
		die(path);
	start = now();
	for (unsigned done = 0; done < bytes;) {
		ssize_t count = write(fd, buffer, bytes - done < SMALL ? bytes - done : SMALL);

		if (count <= 0)
			die(path);
		done += count;
	}
	tcdrain(fd);
	report(name, start, bytes / SMALL, bytes);
	close(fd);
}

int main(void)
{
	int fd = open("/dev/vda", O_RDWR | O_DIRECT);

	if (fd < 0 || syscall(SYS_io_setup, DEPTH, &context) < 0)
		die("/dev/vda");
	/* Printable, in lines, for the consoles. */
	for (size_t n = 0; n < sizeof buffer; n++)
		buffer[n] = n % 64 == 63 ? '\n' : 'a' + n % 26;
	/* The file behind the disk has all its pages from here on. */
	for (off_t at = 0; at < DISK; at += LARGE)
		one(fd, 1, at, LARGE);
	for (int round = 0; round < ROUNDS; round++) {
		disk(fd, 0);
		disk(fd, 1);
		console("/dev/hvc0", "console-virtio", CONSOLE);
		console("/dev/ttyS0", "console-serial", CONSOLE / 4);
	}
	return 0;
}
