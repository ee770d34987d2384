// SPDX-License-Identifier: GPL-2.0-only
/*
 * For a stock Linux kernel in a protected VM: its virtio devices use nothing but memory that the VM
 * shares with the host.
 *
 * Stock kernels have neither restricted DMA pools nor a driver for protected guests. The firmware
 * has shared the pool that the device tree names ("restricted-dma-pool"); this module gives every
 * virtio-mmio and virtio-pci device DMA operations that copy to and from there. Load it before the
 * devices' own drivers, and before virtio_mmio. (virtio_pci may be built in: on its own it gives
 * the device no memory. A device whose driver is built in too comes too early.) The devices offer
 * VIRTIO_F_ACCESS_PLATFORM, so virtio uses the DMA API.
 *
 * What comes from the pool is the host's word, like what comes from any device of its.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/arm-smccc.h>
#include <linux/dma-map-ops.h>
#include <linux/genalloc.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/scatterlist.h>
#include <linux/vmalloc.h>

/* KVM's numbers: guests of protected KVM have them too. */
#define HYP_MEMINFO 0xC6000002

/* The pool is handed out in units of this size, and not in larger pieces than that. */
#define UNIT_SHIFT 9
#define LARGEST SZ_256K

static struct gen_pool *pool;
static phys_addr_t pool_base;
static size_t pool_size;
/* Physical address of what is mapped at each unit of the pool. */
static phys_addr_t *origins;

static phys_addr_t *origin(dma_addr_t at)
{
	return &origins[(at - pool_base) >> UNIT_SHIFT];
}

static bool inside(dma_addr_t at, size_t size)
{
	return at >= pool_base && size <= pool_size && at - pool_base <= pool_size - size;
}

/* Where a buffer that is mapped at unit-aligned `start` has the byte for pool address `at`. */
static void *original(dma_addr_t start, dma_addr_t at)
{
	return phys_to_virt(*origin(start) + (at - start));
}

/*
 * The first unit of the buffer that `at` is in: a part of a buffer may be synchronised, and each
 * unit holds its own origin.
 */
static void copy_out(dma_addr_t at, size_t size)
{
	while (size) {
		dma_addr_t unit = round_down(at, 1 << UNIT_SHIFT);
		size_t part = min_t(size_t, size, (1 << UNIT_SHIFT) - (at - unit));

		memcpy(phys_to_virt(at), original(unit, at), part);
		at += part;
		size -= part;
	}
}

static void copy_in(dma_addr_t at, size_t size)
{
	while (size) {
		dma_addr_t unit = round_down(at, 1 << UNIT_SHIFT);
		size_t part = min_t(size_t, size, (1 << UNIT_SHIFT) - (at - unit));

		memcpy(original(unit, at), phys_to_virt(at), part);
		at += part;
		size -= part;
	}
}

static void *bounce_alloc(struct device *dev, size_t size, dma_addr_t *handle, gfp_t gfp,
			  unsigned long attrs)
{
	/* Rings need the alignment of a page. */
	void *p = gen_pool_dma_alloc_align(pool, PAGE_ALIGN(size), handle, PAGE_SIZE);

	if (p)
		memset(p, 0, PAGE_ALIGN(size));
	return p;
}

static void bounce_free(struct device *dev, size_t size, void *p, dma_addr_t handle,
			unsigned long attrs)
{
	gen_pool_free(pool, (unsigned long)p, PAGE_ALIGN(size));
}

static dma_addr_t bounce_map(struct device *dev, struct page *page, unsigned long offset,
			     size_t size, enum dma_data_direction dir, unsigned long attrs)
{
	phys_addr_t from = page_to_phys(page) + offset;
	dma_addr_t at;
	size_t done;

	if (!size || size > LARGEST || !gen_pool_dma_alloc(pool, size, &at))
		return DMA_MAPPING_ERROR;
	for (done = 0; done < size; done += 1 << UNIT_SHIFT)
		*origin(at + done) = from + done;
	/*
	 * What the device is to fill starts as zeros: the host shall see neither what was in this
	 * memory before, as it would with swiotlb, nor the guest what was in the pool.
	 */
	if (dir == DMA_FROM_DEVICE)
		memset(phys_to_virt(at), 0, size);
	else
		copy_out(at, size);
	return at;
}

static void bounce_unmap(struct device *dev, dma_addr_t at, size_t size,
			 enum dma_data_direction dir, unsigned long attrs)
{
	if (WARN_ON_ONCE(!inside(at, size)))
		return;
	if (dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		copy_in(at, size);
	gen_pool_free(pool, (unsigned long)phys_to_virt(at), size);
}

static void bounce_sync_for_cpu(struct device *dev, dma_addr_t at, size_t size,
				enum dma_data_direction dir)
{
	if (inside(at, size) && dir != DMA_TO_DEVICE)
		copy_in(at, size);
}

static void bounce_sync_for_device(struct device *dev, dma_addr_t at, size_t size,
				   enum dma_data_direction dir)
{
	if (inside(at, size) && dir != DMA_FROM_DEVICE)
		copy_out(at, size);
}

static void bounce_unmap_sg(struct device *dev, struct scatterlist *list, int n,
			    enum dma_data_direction dir, unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, n, i)
		bounce_unmap(dev, sg->dma_address, sg_dma_len(sg), dir, attrs);
}

static int bounce_map_sg(struct device *dev, struct scatterlist *list, int n,
			 enum dma_data_direction dir, unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, n, i) {
		sg->dma_address = bounce_map(dev, sg_page(sg), sg->offset, sg->length, dir, attrs);
		if (sg->dma_address == DMA_MAPPING_ERROR) {
			bounce_unmap_sg(dev, list, i, dir, attrs | DMA_ATTR_SKIP_CPU_SYNC);
			return -ENOMEM;
		}
		sg_dma_len(sg) = sg->length;
	}
	return n;
}

static size_t bounce_largest(struct device *dev)
{
	return LARGEST;
}

static int bounce_supported(struct device *dev, u64 mask)
{
	return pool_base + pool_size - 1 <= mask;
}

static const struct dma_map_ops bounce_ops = {
	.alloc = bounce_alloc,
	.free = bounce_free,
	.map_page = bounce_map,
	.unmap_page = bounce_unmap,
	.map_sg = bounce_map_sg,
	.unmap_sg = bounce_unmap_sg,
	.sync_single_for_cpu = bounce_sync_for_cpu,
	.sync_single_for_device = bounce_sync_for_device,
	.max_mapping_size = bounce_largest,
	.dma_supported = bounce_supported,
};

static void bounce(struct device *dev)
{
	set_dma_ops(dev, &bounce_ops);
}

static int bound(struct notifier_block *nb, unsigned long action, void *data)
{
	struct device *dev = data;

	if (action == BUS_NOTIFY_BIND_DRIVER && of_device_is_compatible(dev->of_node, "virtio,mmio"))
		bounce(dev);
	return NOTIFY_DONE;
}

static struct notifier_block binding = { .notifier_call = bound };

static int bound_pci(struct notifier_block *nb, unsigned long action, void *data)
{
	struct pci_dev *dev = to_pci_dev(data);

	if (action == BUS_NOTIFY_BIND_DRIVER && dev->vendor == PCI_VENDOR_ID_REDHAT_QUMRANET)
		bounce(&dev->dev);
	return NOTIFY_DONE;
}

static struct notifier_block binding_pci = { .notifier_call = bound_pci };

/* Those that virtio_pci has already. */
static void bounce_bound_pci(void)
{
	struct pci_dev *dev = NULL;

	while ((dev = pci_get_device(PCI_VENDOR_ID_REDHAT_QUMRANET, PCI_ANY_ID, dev)))
		bounce(&dev->dev);
}

static int find_pool(struct resource *where)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "restricted-dma-pool");
	int ret;

	if (!node)
		return -ENODEV;
	ret = of_address_to_resource(node, 0, where);
	of_node_put(node);
	return ret;
}

static int __init gzvm_guest_init(void)
{
	struct arm_smccc_res res;
	struct resource where;
	int ret;

	arm_smccc_1_1_invoke(HYP_MEMINFO, 0, 0, 0, &res);
	if ((long)res.a0 <= 0 || PAGE_SIZE % res.a0) {
		pr_info("this VM is not protected\n");
		return -ENODEV;
	}
	ret = find_pool(&where);
	if (ret) {
		pr_err("no memory is shared: the device tree has no restricted-dma-pool\n");
		return ret;
	}
	pool_base = where.start;
	pool_size = resource_size(&where);
	origins = vcalloc(pool_size >> UNIT_SHIFT, sizeof(*origins));
	pool = gen_pool_create(UNIT_SHIFT, NUMA_NO_NODE);
	ret = -ENOMEM;
	if (!origins || !pool)
		goto fail;
	ret = gen_pool_add_virt(pool, (unsigned long)phys_to_virt(pool_base), pool_base, pool_size,
				NUMA_NO_NODE);
	if (ret)
		goto fail;
	ret = bus_register_notifier(&platform_bus_type, &binding);
	if (ret)
		goto fail;
	ret = bus_register_notifier(&pci_bus_type, &binding_pci);
	if (ret) {
		bus_unregister_notifier(&platform_bus_type, &binding);
		goto fail;
	}
	bounce_bound_pci();
	pr_info("virtio devices share %zu KiB at %pa\n", pool_size >> 10, &pool_base);
	return 0;
fail:
	if (pool)
		gen_pool_destroy(pool);
	vfree(origins);
	return ret;
}

/* There is no way out: devices use the pool. */
module_init(gzvm_guest_init);

MODULE_DESCRIPTION("virtio in a protected GenieZone VM: bounce buffers in shared memory");
MODULE_LICENSE("GPL");
