// SPDX-License-Identifier: GPL-2.0-only
/*
 * All that the GenieZone driver knows about the Linux kernel.
 *
 * The driver's logic is Rust (core/). This file gives it plain-typed services (gzk_*), and hands
 * it what the kernel asks of a driver (gzr_*). Every LINUX_VERSION_CODE test lives here; no
 * decision about GenieZone does. core/src/sys.rs repeats the prototypes, and core/src/fake/ is
 * the same interface for tests on a PC.
 *
 * Pointers that cross are opaque on the other side. Errors are negative errno values.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/arm-smccc.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/page-flags.h>
#include <linux/poll.h>
#include <linux/ratelimit.h>
#include <linux/rcuwait.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <asm/sysreg.h>
#include <asm/virt.h>

/* ---- What the Rust side offers. Contexts: process, unless said. ---- */

int gzr_init(void);
long gzr_dev_ioctl(u32 cmd, u64 arg);
long gzr_vm_ioctl(void *vm, u32 cmd, u64 arg);
void gzr_vm_release(void *vm);
long gzr_vcpu_ioctl(void *vcpu, u32 cmd, u64 arg);
int gzr_vcpu_run_page(void *vcpu, void **page);
void gzr_vcpu_release(void *vcpu);
int gzr_memory_map(void *memory, u64 page, u64 pages);
u64 gzr_memory_size(void *memory);
int gzr_memory_fault(void *memory, u64 page, void *fault);
void gzr_memory_release(void *memory);
#ifdef GZVM_CRASH_TEST
extern unsigned int gzr_mistake;
#endif
void gzr_irqfd_signalled(void *owner); /* atomic, interrupts off */
void gzr_irqfd_hangup(void *owner);
void gzr_counters_show(void *seq);

/* ---- Messages ---- */

void gzk_log(u32 level, const u8 *text, size_t len)
{
	static DEFINE_RATELIMIT_STATE(limit, 5 * HZ, 20);

	if (!__ratelimit(&limit))
		return;
	switch (level) {
	case 3:
		pr_err("%.*s\n", (int)len, text);
		break;
	case 4:
		pr_warn("%.*s\n", (int)len, text);
		break;
	default:
		pr_info("%.*s\n", (int)len, text);
	}
}

void __noreturn gzk_bug(const u8 *text, size_t len)
{
	pr_emerg("%.*s\n", (int)len, text);
	BUG();
}

void gzk_seq_write(void *seq, const u8 *text, size_t len)
{
	seq_write(seq, text, len);
}

/* ---- Memory of the kernel ---- */

void *gzk_alloc(size_t size)
{
	return kvzalloc(size, GFP_KERNEL_ACCOUNT);
}

void gzk_free(void *p)
{
	kvfree(p);
}

/* 2^order zeroed, contiguous pages; their physical address goes to *pa. */
void *gzk_pages_alloc(u32 order, u64 *pa)
{
	void *p = (void *)__get_free_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, order);

	if (p)
		*pa = virt_to_phys(p);
	return p;
}

void gzk_pages_free(void *p, u32 order)
{
	free_pages((unsigned long)p, order);
}

/* ---- Memory of user space ---- */

/*
 * The sizes that every RUN copies are constants to the compiler: then the checks of hardened user
 * copies, a hundred instructions each time, are made when it compiles.
 */
#define GZK_RUN_SIZE 264
#define GZK_RUN_PAYLOAD 256

int gzk_user_read(void *to, u64 from, size_t len)
{
	const void __user *user = (const void __user *)from;

	if (len == GZK_RUN_SIZE)
		return copy_from_user(to, user, GZK_RUN_SIZE) ? -EFAULT : 0;
	return copy_from_user(to, user, len) ? -EFAULT : 0;
}

int gzk_user_write(u64 to, const void *from, size_t len)
{
	void __user *user = (void __user *)to;

	if (len == GZK_RUN_PAYLOAD)
		return copy_to_user(user, from, GZK_RUN_PAYLOAD) ? -EFAULT : 0;
	if (len == sizeof(u32))
		return put_user(*(const u32 *)from, (u32 __user *)user);
	return copy_to_user(user, from, len) ? -EFAULT : 0;
}

void *gzk_mm_grab(void)
{
	if (!current->mm)
		return NULL;
	mmgrab(current->mm);
	return current->mm;
}

int gzk_mm_is_current(const void *mm)
{
	return current->mm == mm;
}

void gzk_mm_drop(void *mm)
{
	mmdrop(mm);
}

static const struct file_operations gzk_memory_fops;

/* The file of guest memory that is mapped at an address, and its page there. NULL for others. */
static struct file *gzk_memory_at(struct vm_area_struct *vma, u64 at, u64 *page)
{
	if (!vma->vm_file || vma->vm_file->f_op != &gzk_memory_fops)
		return NULL;
	*page = vma->vm_pgoff + ((at - vma->vm_start) >> PAGE_SHIFT);
	return vma->vm_file;
}

/*
 * Is [start, start + size) of the caller wholly mapped? -EFAULT: nothing at start; -EINVAL: a
 * hole further on. Where a file of guest memory is mapped there, *memory is that file, with a
 * reference, and *page its page at start; -EINVAL if that is not so, in order, up to the end.
 */
int gzk_user_range_check(u64 start, u64 size, void **memory, u64 *page)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct file *file, *first = NULL;
	u64 at = start, end = start + size, here = 0;
	int ret = 0;

	if (end < start || end > TASK_SIZE)
		return -EINVAL;
	mmap_read_lock(mm);
	do {
		vma = find_vma(mm, at);
		if (!vma || vma->vm_start > at) {
			ret = at == start ? -EFAULT : -EINVAL;
			break;
		}
		file = gzk_memory_at(vma, at, &here);
		if (at == start) {
			first = file;
			*page = here;
		} else if (file != first || (file && here - *page != (at - start) >> PAGE_SHIFT)) {
			ret = -EINVAL;
			break;
		}
		at = vma->vm_end;
	} while (at < end);
	*memory = ret || !first ? NULL : get_file(first);
	mmap_read_unlock(mm);
	return ret;
}

/*
 * Pins n pages of the caller for writing and for long, from the page-aligned address on. PFNs go
 * to pfns[]. How many were pinned, at least one, or an error.
 */
long gzk_pin(u64 addr, size_t n, u64 *pfns)
{
	struct page **pages = (struct page **)pfns;
	int i, got;

	BUILD_BUG_ON(sizeof(*pages) != sizeof(*pfns));
	got = pin_user_pages_fast(addr, n, FOLL_WRITE | FOLL_LONGTERM, pages);
	if (got <= 0)
		return got ? got : -EFAULT;
	for (i = 0; i < got; i++)
		pfns[i] = page_to_pfn(pages[i]);
	return got;
}

/* Unpins pages; overwrites the array. */
void gzk_unpin(u64 *pfns, size_t n)
{
	struct page **pages = (struct page **)pfns;
	size_t i;

	for (i = 0; i < n; i++)
		pages[i] = pfn_to_page(pfns[i]);
	unpin_user_pages_dirty_lock(pages, n, true);
}

/*
 * Whether one leaf of the caller's tables maps the whole 2 MiB at addr, this page first, for writing. The
 * walk is that of a lockless gup: with interrupts off no table is freed.
 */
static bool gzk_is_block(u64 addr, struct page *first)
{
	unsigned long flags;
	bool block = false;
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t pmd;

	local_irq_save(flags);
	pgdp = pgd_offset(current->mm, addr);
	pgd = READ_ONCE(*pgdp);
	if (pgd_none(pgd))
		goto out;
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = READ_ONCE(*p4dp);
	if (p4d_none(p4d))
		goto out;
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = READ_ONCE(*pudp);
	if (pud_none(pud) || pud_leaf(pud))
		goto out;
	pmd = READ_ONCE(*pmd_offset_lockless(pudp, pud, addr));
	block = pmd_present(pmd) && pmd_leaf(pmd) && pmd_write(pmd) && pmd_pfn(pmd) == page_to_pfn(first);
out:
	local_irq_restore(flags);
	return block;
}

/*
 * Pins a page that the caller has most likely not touched yet: where there is none a lockless look finds
 * nothing. Before 6.3 only that way takes pages for long.
 */
static long gzk_pin_untouched(u64 addr, struct page **page)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return pin_user_pages_unlocked(addr, 1, page, FOLL_WRITE | FOLL_LONGTERM);
#else
	return pin_user_pages_fast(addr, 1, FOLL_WRITE | FOLL_LONGTERM, page);
#endif
}

/*
 * Pins the 2 MiB of the caller at addr, a multiple of that, if they are one huge page: by its first
 * page, since what holds one holds all of them. 1 with its PFN; 0 if they are not.
 */
int gzk_pin_block(u64 addr, u64 *pfn)
{
	struct page *page;

	if (PMD_SIZE != SZ_2M)
		return 0;
	if (gzk_pin_untouched(addr, &page) != 1)
		return 0;
	if (!gzk_is_block(addr, page)) {
		unpin_user_page(page);
		return 0;
	}
	*pfn = page_to_pfn(page);
	return 1;
}

/* Gives such a block back. */
void gzk_unpin_block(u64 pfn)
{
	struct page *page = pfn_to_page(pfn);

	unpin_user_pages_dirty_lock(&page, 1, true);
}

/* ---- Locks ---- */

void *gzk_mutex_new(u32 class)
{
	static struct lock_class_key keys[8];
	static const char *const names[8] = { "gzvm vcpu", "gzvm memory", "gzvm irqfds", "gzvm create",
					      "gzvm ioeventfds", "gzvm guest memory", "gzvm channels",
					      "gzvm channel" };
	struct mutex *m = kzalloc(sizeof(*m), GFP_KERNEL_ACCOUNT);

	class = min_t(u32, class, 7);
	if (m)
		__mutex_init(m, names[class], &keys[class]);
	return m;
}

void gzk_mutex_free(void *m)
{
	mutex_destroy(m);
	kfree(m);
}

void gzk_mutex_lock(void *m)
{
	mutex_lock(m);
}

/* -EINTR if a signal came first. */
int gzk_mutex_lock_interruptible(void *m)
{
	return mutex_lock_interruptible(m);
}

void gzk_mutex_unlock(void *m)
{
	mutex_unlock(m);
}

/* ---- Scheduling and time ---- */

int gzk_signal_pending(void)
{
	return signal_pending(current);
}

void gzk_cond_resched(void)
{
	cond_resched();
}

void gzk_msleep(u32 ms)
{
	msleep(ms);
}

/* One thread sleeps, any context wakes. A wake-up since the last clear is never lost. */
struct gzk_waiter {
	struct rcuwait wait;
	atomic_t woken;
};

void *gzk_waiter_new(void)
{
	struct gzk_waiter *w = kzalloc(sizeof(*w), GFP_KERNEL_ACCOUNT);

	if (w)
		rcuwait_init(&w->wait);
	return w;
}

void gzk_waiter_free(void *waiter)
{
	kfree(waiter);
}

void gzk_waiter_clear(void *waiter)
{
	struct gzk_waiter *w = waiter;

	/* Orders the clearing before the hypercall that looks for interrupts. */
	atomic_xchg(&w->woken, 0);
}

void gzk_waiter_wake(void *waiter)
{
	struct gzk_waiter *w = waiter;

	if (!atomic_xchg(&w->woken, 1))
		rcuwait_wake_up(&w->wait);
}

/* Until woken, a signal, or ns have passed. */
void gzk_waiter_sleep(void *waiter, u64 ns)
{
	struct gzk_waiter *w = waiter;
	ktime_t end = ktime_add_safe(ktime_get(), min_t(u64, ns, KTIME_MAX));

	prepare_to_rcuwait(&w->wait);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE | TASK_FREEZABLE);
		if (atomic_read(&w->woken) || signal_pending(current))
			break;
		if (!schedule_hrtimeout(&end, HRTIMER_MODE_ABS))
			break;
	}
	finish_rcuwait(&w->wait);
}

/* Ticks of the system counter in a second. */
u64 gzk_counter_frequency(void)
{
	return read_sysreg(cntfrq_el0);
}

/* Wall clock in ns and the system counter at the same moment. */
int gzk_clock_snapshot(u64 *wall_ns, u64 *counter)
{
	struct system_time_snapshot snap;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 2, 0)
	ktime_get_snapshot_id(CLOCK_REALTIME, &snap);
	*wall_ns = ktime_to_ns(snap.systime);
#else
	ktime_get_snapshot(&snap);
	*wall_ns = ktime_to_ns(snap.real);
#endif
	if (snap.cs_id != CSID_ARM_ARCH_COUNTER)
		return -EOPNOTSUPP;
	*counter = snap.cycles;
	return 0;
}

/* ---- Hypercalls ---- */

/* x0..x7 from regs[]; x0..x3 back to regs[]. */
void gzk_hvc(u64 *regs)
{
	struct arm_smccc_res r;

	arm_smccc_1_1_hvc(regs[0], regs[1], regs[2], regs[3], regs[4], regs[5], regs[6], regs[7], &r);
	regs[0] = r.a0;
	regs[1] = r.a1;
	regs[2] = r.a2;
	regs[3] = r.a3;
}

u32 gzk_pa_bits(void)
{
	return CONFIG_ARM64_PA_BITS;
}

/* ---- Event file descriptors ---- */

int gzk_eventfd_get(int fd, void **ctx)
{
	struct eventfd_ctx *c = eventfd_ctx_fdget(fd);

	if (IS_ERR(c))
		return PTR_ERR(c);
	*ctx = c;
	return 0;
}

void gzk_eventfd_put(void *ctx)
{
	eventfd_ctx_put(ctx);
}

void gzk_eventfd_signal(void *ctx)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(ctx);
#else
	eventfd_signal(ctx, 1);
#endif
}

/* An eventfd watched from the kernel. */
struct gzk_irqfd {
	wait_queue_entry_t wait;
	poll_table poll;
	struct eventfd_ctx *ctx;
	struct work_struct hangup;
	void *owner;
};

/* Hang-ups are handled here, since they come in atomic context. */
static struct workqueue_struct *gzk_hangups;

static int gzk_irqfd_wake(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct gzk_irqfd *irqfd = container_of(wait, struct gzk_irqfd, wait);
	__poll_t flags = key_to_poll(key);
	u64 count;

	if (flags & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->ctx, &count);
		gzr_irqfd_signalled(irqfd->owner);
	}
	if (flags & EPOLLHUP)
		queue_work(gzk_hangups, &irqfd->hangup);
	return 0;
}

static void gzk_irqfd_queue(struct file *file, wait_queue_head_t *head, poll_table *poll)
{
	struct gzk_irqfd *irqfd = container_of(poll, struct gzk_irqfd, poll);

	add_wait_queue(head, &irqfd->wait);
}

static void gzk_irqfd_hangup(struct work_struct *work)
{
	/* May free the irqfd. */
	gzr_irqfd_hangup(container_of(work, struct gzk_irqfd, hangup)->owner);
}

/* Step one: holds the eventfd, so that the owner can compare contexts. */
int gzk_irqfd_new(int fd, void **out, void **ctx)
{
	struct gzk_irqfd *irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);

	if (!irqfd)
		return -ENOMEM;
	irqfd->ctx = eventfd_ctx_fdget(fd);
	if (IS_ERR(irqfd->ctx)) {
		int ret = PTR_ERR(irqfd->ctx);

		kfree(irqfd);
		return ret;
	}
	INIT_WORK(&irqfd->hangup, gzk_irqfd_hangup);
	init_waitqueue_func_entry(&irqfd->wait, gzk_irqfd_wake);
	INIT_LIST_HEAD(&irqfd->wait.entry);
	init_poll_funcptr(&irqfd->poll, gzk_irqfd_queue);
	*out = irqfd;
	*ctx = irqfd->ctx;
	return 0;
}

/* Step two: from here on the owner is told of signals. fd as in step one. */
int gzk_irqfd_watch(void *p, int fd, void *owner)
{
	struct gzk_irqfd *irqfd = p;
	struct file *file = fget(fd);
	struct eventfd_ctx *ctx;
	int ret = 0;

	if (!file)
		return -EBADF;
	/* Another thread may have put another file there meanwhile. */
	ctx = eventfd_ctx_fileget(file);
	if (ctx != irqfd->ctx) {
		ret = -EBADF;
	} else {
		irqfd->owner = owner;
		/* What was signalled before counts once. */
		if (vfs_poll(file, &irqfd->poll) & EPOLLIN)
			gzr_irqfd_signalled(owner);
	}
	if (!IS_ERR(ctx))
		eventfd_ctx_put(ctx);
	fput(file);
	return ret;
}

/* No call of the owner is under way, or comes, after this. from_hangup: called by the hang-up. */
void gzk_irqfd_free(void *p, int from_hangup)
{
	struct gzk_irqfd *irqfd = p;
	u64 count;

	if (!list_empty(&irqfd->wait.entry))
		eventfd_ctx_remove_wait_queue(irqfd->ctx, &irqfd->wait, &count);
	if (!from_hangup)
		cancel_work_sync(&irqfd->hangup);
	eventfd_ctx_put(irqfd->ctx);
	kfree(irqfd);
}

/* Returns when every hang-up that has come by now has been handled. Not from a hang-up. */
void gzk_irqfd_flush(void)
{
	flush_workqueue(gzk_hangups);
}

/* ---- Guest memory that is a file ---- */

/* 2^order zeroed pages in one piece; the first one's PFN goes to *pfn. */
int gzk_frames_alloc(u32 order, u64 *pfn)
{
	gfp_t gfp = GFP_USER | __GFP_ZERO | __GFP_ACCOUNT;
	struct page *page;

	/* Whoever asks for many takes single ones too. */
	if (order)
		gfp |= __GFP_NORETRY | __GFP_NOWARN;
	page = alloc_pages(gfp, order);
	if (!page)
		return -ENOMEM;
	*pfn = page_to_pfn(page);
	return 0;
}

/* From here on they are freed one by one. */
void gzk_frames_split(u64 pfn, u32 order)
{
	split_page(pfn_to_page(pfn), order);
}

/*
 * Whoever reads the kernel's own map, as /proc/kcore and dumps do, passes over these pages until
 * they are freed. Begin waits until those who look have done, who may be waiting for user space.
 */
void gzk_frames_hide_begin(void)
{
	page_offline_begin();
}

void gzk_frames_hide(u64 pfn, u64 count)
{
	struct page *page = pfn_to_page(pfn);
	struct page *end = page + count;

	for (; page < end; page++)
		__SetPageOffline(page);
}

void gzk_frames_hide_end(void)
{
	page_offline_end();
}

/* What was allocated in one piece and not split, or a single page. */
void gzk_frames_free(u64 pfn, u32 order)
{
	struct page *first = pfn_to_page(pfn);
	struct page *page;

	for (page = first; page < first + (1UL << order); page++)
		if (PageOffline(page))
			__ClearPageOffline(page);
	__free_pages(first, order);
}

static vm_fault_t gzk_memory_fault(struct vm_fault *vmf)
{
	switch (gzr_memory_fault(vmf->vma->vm_file->private_data, vmf->pgoff, vmf)) {
	case 0:
		return VM_FAULT_NOPAGE;
	case -ENOMEM:
		return VM_FAULT_OOM;
	default:
		return VM_FAULT_SIGBUS;
	}
}

/* Maps a page where user space touched one. Called by the Rust side out of gzr_memory_fault. */
int gzk_memory_insert(void *fault, u64 pfn)
{
	struct vm_fault *vmf = fault;
	vm_fault_t ret = vmf_insert_pfn(vmf->vma, vmf->address & PAGE_MASK, pfn);

	if (ret == VM_FAULT_NOPAGE)
		return 0;
	return ret == VM_FAULT_OOM ? -ENOMEM : -EFAULT;
}

static const struct vm_operations_struct gzk_memory_vm_ops = {
	.fault = gzk_memory_fault,
};

static void gzk_vma_set(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

/* Page frames, not pages: nobody can get hold of one, as direct I/O would, when it has to go. */
static int gzk_memory_mmap(struct file *file, struct vm_area_struct *vma)
{
	int ret;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	ret = gzr_memory_map(file->private_data, vma->vm_pgoff, vma_pages(vma));
	if (ret)
		return ret;
	gzk_vma_set(vma, VM_PFNMAP | VM_IO | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &gzk_memory_vm_ops;
	return 0;
}

/* Programs ask so how much there is to be mapped. */
static loff_t gzk_memory_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, gzr_memory_size(file->private_data));
}

static int gzk_memory_release(struct inode *inode, struct file *file)
{
	/* NULL: it was never finished. */
	if (file->private_data) {
		gzr_memory_release(file->private_data);
		iput(file->f_mapping->host);
	}
	return 0;
}

static const struct file_operations gzk_memory_fops = {
	.owner = THIS_MODULE,
	.release = gzk_memory_release,
	.mmap = gzk_memory_mmap,
	.llseek = gzk_memory_llseek,
};

/* Gives the object to a new file, which releases it. On error the object stays the caller's. */
int gzk_memory_fd(void *memory)
{
	struct file *file;
	struct inode *inode;
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	file = anon_inode_getfile("gzvm-memory", &gzk_memory_fops, NULL, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	/* All such files have one inode, but each needs its own list of mappings. */
	inode = alloc_anon_inode(file_inode(file)->i_sb);
	if (IS_ERR(inode)) {
		fput(file);
		put_unused_fd(fd);
		return PTR_ERR(inode);
	}
	file->f_mapping = inode->i_mapping;
	file->private_data = memory;
	fd_install(fd, file);
	return fd;
}

/* The object of such a file. */
void *gzk_memory_of(void *file)
{
	return ((struct file *)file)->private_data;
}

void gzk_memory_put(void *file)
{
	fput(file);
}

/* When it returns, no process reaches these pages, unless it faults again. */
void gzk_memory_unmap(void *file, u64 page, u64 pages)
{
	unmap_mapping_range(((struct file *)file)->f_mapping, page << PAGE_SHIFT, pages << PAGE_SHIFT, 1);
}

/* ---- Files ---- */

static long gzk_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return gzr_vm_ioctl(file->private_data, cmd, arg);
}

static int gzk_vm_release(struct inode *inode, struct file *file)
{
	gzr_vm_release(file->private_data);
	return 0;
}

static const struct file_operations gzk_vm_fops = {
	.owner = THIS_MODULE,
	.release = gzk_vm_release,
	.unlocked_ioctl = gzk_vm_ioctl,
};

/* The VM of a descriptor, whose file stays open until gzk_vm_put. */
int gzk_vm_get(int fd, void **file, void **vm)
{
	struct file *f = fget(fd);

	if (!f)
		return -EBADF;
	if (f->f_op != &gzk_vm_fops) {
		fput(f);
		return -EINVAL;
	}
	*file = f;
	*vm = f->private_data;
	return 0;
}

void gzk_vm_put(void *file)
{
	fput(file);
}

static long gzk_vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return gzr_vcpu_ioctl(file->private_data, cmd, arg);
}

/* The run page, shared and whole. It lives as long as the file, which each mapping holds. */
static int gzk_vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	void *page;
	int ret;

	if (vma->vm_pgoff || vma_pages(vma) != 1 || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	ret = gzr_vcpu_run_page(file->private_data, &page);
	if (ret)
		return ret;
	/* A child could not use it. */
	gzk_vma_set(vma, VM_DONTCOPY | VM_DONTEXPAND);
	return vm_insert_page(vma, vma->vm_start, virt_to_page(page));
}

static int gzk_vcpu_release(struct inode *inode, struct file *file)
{
	gzr_vcpu_release(file->private_data);
	return 0;
}

static const struct file_operations gzk_vcpu_fops = {
	.owner = THIS_MODULE,
	.release = gzk_vcpu_release,
	.unlocked_ioctl = gzk_vcpu_ioctl,
	.mmap = gzk_vcpu_mmap,
};

/* Gives the object to a new file, which releases it. On error the object stays the caller's. */
int gzk_vm_fd(void *vm)
{
#ifdef GZVM_CRASH_TEST
	/* driver/core/src/broken.rs: NoOwner */
	static struct file_operations loose;

	if (gzr_mistake == 1) {
		loose = gzk_vm_fops;
		loose.owner = NULL;
		return anon_inode_getfd("gzvm-vm", &loose, vm, O_RDWR | O_CLOEXEC);
	}
#endif
	return anon_inode_getfd("gzvm-vm", &gzk_vm_fops, vm, O_RDWR | O_CLOEXEC);
}

int gzk_vcpu_fd(u32 index, void *vcpu)
{
	char name[sizeof("gzvm-vcpu:4294967295")];

	snprintf(name, sizeof(name), "gzvm-vcpu:%u", index);
	return anon_inode_getfd(name, &gzk_vcpu_fops, vcpu, O_RDWR | O_CLOEXEC);
}

static long gzk_dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return gzr_dev_ioctl(cmd, arg);
}

static const struct file_operations gzk_dev_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = gzk_dev_ioctl,
};

static struct miscdevice gzk_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &gzk_dev_fops,
};

static int gzk_counters_show(struct seq_file *seq, void *unused)
{
	gzr_counters_show(seq);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(gzk_counters);

/* ---- The module ---- */

static const struct of_device_id gzk_of_match[] = {
	{ .compatible = "mediatek,geniezone" },
	{}
};
MODULE_DEVICE_TABLE(of, gzk_of_match);

static struct dentry *gzk_debugfs;

static int __init gzk_init(void)
{
	struct device_node *node;
	int ret;

	if (PAGE_SIZE != SZ_4K) {
		pr_err("this kernel has %lu KiB pages; GenieZone needs 4 KiB\n", PAGE_SIZE / SZ_1K);
		return -EOPNOTSUPP;
	}
	if (is_kernel_in_hyp_mode()) {
		pr_err("this kernel runs at EL2 itself: there is no hypervisor below it. Start it through the GenieZone hypervisor\n");
		return -ENODEV;
	}
	node = of_find_matching_node(NULL, gzk_of_match);
	if (!node) {
		pr_err("the device tree has no node \"mediatek,geniezone\": this machine was not started through the GenieZone hypervisor\n");
		return -ENODEV;
	}
	if (!of_device_is_available(node)) {
		pr_err("%pOF is disabled in the device tree\n", node);
		of_node_put(node);
		return -ENODEV;
	}
	of_node_put(node);

	ret = gzr_init();
	if (ret)
		return ret;

	gzk_hangups = alloc_workqueue("gzvm-irqfd", WQ_UNBOUND, 0);
	if (!gzk_hangups)
		return -ENOMEM;
	ret = misc_register(&gzk_dev);
	if (ret) {
		pr_err("can't make /dev/%s: error %d\n", KBUILD_MODNAME, ret);
		destroy_workqueue(gzk_hangups);
		return ret;
	}
	gzk_debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("counters", 0400, gzk_debugfs, NULL, &gzk_counters_fops);
	return 0;
}

static void __exit gzk_exit(void)
{
	/* No file is open: each holds the module. A hang-up may be in its last lines. */
	debugfs_remove_recursive(gzk_debugfs);
	misc_deregister(&gzk_dev);
	destroy_workqueue(gzk_hangups);
}

module_init(gzk_init);
module_exit(gzk_exit);
#ifdef GZVM_CRASH_TEST
module_param_named(mistake, gzr_mistake, uint, 0600);
MODULE_PARM_DESC(mistake, "the mistake to make (driver/core/src/broken.rs), 0: none");
#endif
MODULE_DESCRIPTION("GenieZone hypervisor driver: /dev/gzvm");
MODULE_AUTHOR("The GenieZone in Rust authors");
MODULE_LICENSE("GPL");
