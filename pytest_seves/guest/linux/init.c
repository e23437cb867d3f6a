/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first and only process of a Linux guest: it says what the kernel made of the guest, takes each AP
 * offline and online again, and powers off. README.md has its parameters and the lines of its report.
 *
 * Freestanding: no C library, no headers but the compiler's own; system calls and numbers are those of the
 * x86-64 ABI (Linux, include/uapi). Only sysfs is mounted, since CPUs go offline through it.
 */
#include <stddef.h>
#include <stdint.h>

enum { SYS_read = 0, SYS_write, SYS_open, SYS_close, SYS_ioctl = 16, SYS_pread64 = 17, SYS_pause = 34,
       SYS_uname = 63, SYS_mkdir = 83, SYS_syslog = 103, SYS_mknod = 133, SYS_mount = 165, SYS_reboot = 169,
       SYS_sched_setaffinity = 203, SYS_sched_getaffinity = 204, SYS_getcpu = 309, SYS_finit_module = 313 };
enum { O_RDONLY = 0, O_RDWR = 2, S_IFCHR = 0020000 };
enum { TCGETS = 0x5401, TCSETSW = 0x5403, TCSBRK = 0x5409, OPOST = 1 };
enum { LOG_READ_ALL = 3, LOG_CONSOLE_OFF = 6 };              /* syslog(2) */
enum { MODULE_INIT_COMPRESSED_FILE = 4, EINVAL = 22 };
enum { MSR_MAJOR = 202 };                                    /* Documentation/admin-guide/devices.txt */
#define SEV_STATUS 0xC0010131u                               /* APM volume 2, 15.34 "SEV_STATUS MSR" */
#define CPUID_ENCRYPTION 0x8000001Fu
#define MAGIC1 0xFEE1DEADu                                   /* reboot(2) */
#define MAGIC2 672274793u
#define POWER_OFF 0x4321FEDCu
#define RESTART 0x01234567u

enum { MAX_CPUS = 4096, MAX_LOG = 1 << 20, MAX_LOG_LINES = 16, MAX_TEXT = 160, MAX_LINE = 512 };

static long call(long number, long a, long b, long c, long d, long e)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

static void cpuid(uint32_t leaf, uint32_t out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

/* Text, and numbers in it. */

static int starts(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return 0;
	return 1;
}

static uint64_t number(const char *text, unsigned base)
{
	uint64_t value = 0;

	for (;; text++) {
		unsigned digit = *text >= 'a' ? *text - 'a' + 10u : *text - '0' + 0u;

		if (digit >= base)
			return value;
		value = value * base + digit;
	}
}

/* The report: one line at a time. */

static char line[MAX_LINE];
static unsigned length, lines;

static void text(const char *words)
{
	while (*words && length < MAX_LINE)
		line[length++] = *words++;
}

static void digits(uint64_t value, unsigned base, int least)
{
	char reversed[20];
	int n = 0;

	do {
		reversed[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value || n < least);
	while (n && length < MAX_LINE)
		line[length++] = reversed[--n];
}

static void field(const char *name, uint64_t value)
{
	text(name);
	digits(value, 10, 1);
}

static void begin(const char *kind)
{
	length = 0;
	text("SEVES1 ");
	field("n=", lines++);
	text(" ");
	text(kind);
}

static void end(void)
{
	uint32_t crc = ~0u;

	for (unsigned i = 0; i < length; i++) {                  /* IEEE 802.3, as zlib's */
		crc ^= (uint8_t)line[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
	}
	text(" crc=");
	digits(~crc, 16, 8);
	text("\n");
	for (unsigned done = 0; done < length;) {
		long n = call(SYS_write, 1, (long)line + done, length - done, 0, 0);

		if (n <= 0)
			break;
		done += n;
	}
}

/* CPUs: sets of them, and what one says of itself. */

static uint8_t present[MAX_CPUS / 8], online[MAX_CPUS / 8];
static char path[64], content[4096];

static int has(const uint8_t *set, unsigned cpu)
{
	return set[cpu / 8] >> cpu % 8 & 1;
}

static unsigned count_online(void)
{
	unsigned count = 0;

	for (unsigned i = 0; i < sizeof(online); i++)
		online[i] = 0;
	call(SYS_sched_getaffinity, 0, sizeof(online), (long)online, 0, 0);
	for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++)
		count += has(online, cpu);
	return count;
}

static void all_cpus(void)
{
	static uint8_t all[MAX_CPUS / 8];

	for (unsigned i = 0; i < sizeof(all); i++)
		all[i] = 0xFF;
	call(SYS_sched_setaffinity, 0, sizeof(all), (long)all, 0, 0);
}

/* Returns 0 once this process runs on that CPU. */
static long go_to(unsigned cpu)
{
	static uint8_t one[MAX_CPUS / 8];
	unsigned now = MAX_CPUS;
	long result;

	one[cpu / 8] = 1 << cpu % 8;
	result = call(SYS_sched_setaffinity, 0, sizeof(one), (long)one, 0, 0);
	one[cpu / 8] = 0;
	if (result == 0)
		result = call(SYS_getcpu, (long)&now, 0, 0, 0, 0);
	return result ? result : now != cpu;
}

static const char *cpu_path(const char *before, unsigned cpu, const char *after)
{
	char *to = path;

	length = 0;                                              /* the line is between two lines: free */
	text(before);
	digits(cpu, 10, 1);
	text(after);
	for (unsigned i = 0; i < length && i < sizeof(path) - 1; i++)
		*to++ = line[i];
	*to = 0;
	return path;
}

/* Reads a small file into `content`; its length, or an error. */
static long slurp(const char *name)
{
	long file = call(SYS_open, (long)name, O_RDONLY, 0, 0, 0), n = file;

	if (file >= 0) {
		n = call(SYS_read, file, (long)content, sizeof(content) - 1, 0, 0);
		call(SYS_close, file, 0, 0, 0, 0);
	}
	content[n > 0 ? n : 0] = 0;
	return n;
}

/* "0-3,5" */
static unsigned read_present(void)
{
	unsigned count = 0;
	const char *at = content;

	if (slurp("/sys/devices/system/cpu/present") <= 0)
		return 0;
	while (*at >= '0' && *at <= '9') {
		unsigned first = number(at, 10), last = first;

		while (*at >= '0' && *at <= '9')
			at++;
		if (*at == '-') {
			last = number(++at, 10);
			while (*at >= '0' && *at <= '9')
				at++;
		}
		for (; first <= last && first < MAX_CPUS; first++, count++)
			present[first / 8] |= 1 << first % 8;
		if (*at == ',')
			at++;
	}
	return count;
}

/* SEV_STATUS of the CPU that this runs on, by the msr driver; 0 or a negative error. */
static long read_status(unsigned cpu, uint64_t *status)
{
	long file, n, device = MSR_MAJOR << 8 | (cpu & 0xFF) | (long)(cpu & 0xFFF00) << 12;

	call(SYS_mkdir, (long)cpu_path("/dev/cpu/", cpu, ""), 0755, 0, 0, 0);
	call(SYS_mknod, (long)cpu_path("/dev/cpu/", cpu, "/msr"), S_IFCHR | 0600, device, 0, 0);
	file = call(SYS_open, (long)path, O_RDONLY, 0, 0, 0);
	if (file < 0)
		return file;
	n = call(SYS_pread64, file, (long)status, sizeof(*status), SEV_STATUS, 0);
	call(SYS_close, file, 0, 0, 0, 0);
	return n == sizeof(*status) ? 0 : n < 0 ? n : -EINVAL;
}

static void report_cpu(unsigned cpu)
{
	uint32_t leaf[4];
	uint64_t status = 0, apic;
	uint32_t features = 0;
	long error;

	if (go_to(cpu)) {
		begin("cpu=");
		digits(cpu, 10, 1);
		text(" ran=0 apic=0 features=0 status=none errno=0");
		end();
		return;
	}
	cpuid(0, leaf);
	if (leaf[0] >= 0xB) {
		cpuid(0xB, leaf);
		apic = leaf[3];
	} else {
		cpuid(1, leaf);
		apic = leaf[1] >> 24;
	}
	cpuid(0x80000000u, leaf);
	if (leaf[0] >= CPUID_ENCRYPTION) {
		cpuid(CPUID_ENCRYPTION, leaf);
		features = leaf[0];
	}
	error = read_status(cpu, &status);
	begin("cpu=");
	digits(cpu, 10, 1);
	field(" ran=1 apic=", apic);
	text(" features=");
	digits(features, 16, 1);
	text(" status=");
	if (error)
		text("none");
	else
		digits(status, 16, 1);
	field(" errno=", -error);
	end();
}

/* The file's new content, by one write. */
static long set_online(unsigned cpu, const char *value)
{
	long file = call(SYS_open, (long)cpu_path("/sys/devices/system/cpu/cpu", cpu, "/online"), O_RDWR, 0, 0, 0);
	long n;

	if (file < 0)
		return file;
	n = call(SYS_write, file, (long)value, 1, 0, 0);
	call(SYS_close, file, 0, 0, 0, 0);
	return n < 0 ? n : 0;
}

/* Returns whether each of the cycles was whole. */
static int cycle(unsigned cpu, unsigned cycles)
{
	unsigned off = 0, on = 0, ran = 0;
	long error = 0;

	all_cpus();                                              /* be elsewhere when it goes */
	for (unsigned i = 0; i < cycles && !error; i++) {
		error = set_online(cpu, "0");
		if (error)
			break;
		count_online();
		off += !has(online, cpu);
		error = set_online(cpu, "1");
		if (error)
			break;
		on++;
		ran += !go_to(cpu);
		all_cpus();
	}
	begin("cycled=");
	digits(cpu, 10, 1);
	field(" offline=", off);
	field(" online=", on);
	field(" ran=", ran);
	field(" errno=", -error);
	end();
	return off == cycles && on == cycles && ran == cycles;
}

/* What the kernel logged of memory encryption. */

static char log[MAX_LOG];

static int about_encryption(const char *at, const char *stop)
{
	for (; at < stop; at++)
		if (starts(at, "SEV") || starts(at, "emory Encryption"))
			return 1;
	return 0;
}

static void report_log(void)
{
	long size = call(SYS_syslog, LOG_READ_ALL, (long)log, sizeof(log) - 32, 0, 0);
	unsigned told = 0;

	for (const char *at = log, *all = log + (size > 0 ? size : 0); at < all && told < MAX_LOG_LINES;) {
		const char *stop = at;

		while (stop < all && *stop != '\n')
			stop++;
		if (about_encryption(at, stop)) {
			begin("log=");
			digits(told++, 10, 1);
			text(" text=");
			for (unsigned i = 0; at + i < stop && i < MAX_TEXT; i++)
				digits((uint8_t)at[i], 16, 2);
			end();
		}
		at = stop + 1;
	}
}

/* What the kernel's command line asks for; it hands us name=value words that it does not know itself. */

static unsigned cycles;
static uint64_t tag;
static char then = 'p';

static void read_environment(char **words)
{
	for (; *words; words++) {
		if (starts(*words, "seves_cycles="))
			cycles = number(*words + 13, 10);
		else if (starts(*words, "seves_tag="))
			tag = number(*words + 10, 16);
		else if (starts(*words, "seves_then="))
			then = (*words)[11];
	}
}

static void quiet_console(void)
{
	uint32_t terminal[9];                                    /* struct termios: 4 flag words, then others */

	call(SYS_syslog, LOG_CONSOLE_OFF, 0, 0, 0, 0);
	if (call(SYS_ioctl, 1, TCGETS, (long)terminal, 0, 0) == 0) {
		terminal[1] &= ~(uint32_t)OPOST;                     /* a line feed stays one */
		call(SYS_ioctl, 1, TCSETSW, (long)terminal, 0, 0);
	}
	call(SYS_write, 1, (long)"\n", 1, 0, 0);
}

static void load_msr_driver(void)
{
	long file = call(SYS_open, (long)"/msr.ko", O_RDONLY, 0, 0, 0);

	if (file < 0)
		return;                                              /* built in, or not given */
	if (call(SYS_finit_module, file, (long)"", 0, 0, 0) != 0)
		call(SYS_finit_module, file, (long)"", MODULE_INIT_COMPRESSED_FILE, 0, 0);
	call(SYS_close, file, 0, 0, 0, 0);
}

static void report(void)
{
	static char name[6][65];                                 /* struct utsname */
	unsigned count = read_present(), up = count_online(), whole = up == count;

	call(SYS_uname, (long)name, 0, 0, 0, 0);
	begin("begin scenario=linux tag=");
	digits(tag, 16, 1);
	field(" present=", count);
	field(" online=", up);
	field(" cycles=", cycles);
	text(" kernel=");
	text(name[2]);
	end();
	report_log();
	for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++)
		if (has(present, cpu))
			report_cpu(cpu);
	for (unsigned cpu = 1; cycles && cpu < MAX_CPUS; cpu++)
		if (has(present, cpu))
			whole &= cycle(cpu, cycles);
	up = count_online();
	begin("end scenario=linux");
	field(" lines=", lines - 1);
	field(" cpus=", up);
	text(whole ? " result=ok" : " result=failed");
	end();
	call(SYS_ioctl, 1, TCSBRK, 1, 0, 0);                     /* until it is out */
}

/* The kernel leaves argc, argv and the environment on the stack. */
void run(long *stack)
{
	read_environment((char **)stack + 1 + stack[0] + 1);
	quiet_console();
	call(SYS_mkdir, (long)"/sys", 0755, 0, 0, 0);
	call(SYS_mount, (long)"sysfs", (long)"/sys", (long)"sysfs", 0, 0);
	call(SYS_mkdir, (long)"/dev/cpu", 0755, 0, 0, 0);
	load_msr_driver();
	report();
	if (then == 'p')
		call(SYS_reboot, MAGIC1, MAGIC2, POWER_OFF, 0, 0);
	if (then == 'r')
		call(SYS_reboot, MAGIC1, MAGIC2, RESTART, 0, 0);
	for (;;)
		call(SYS_pause, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call run\n");
