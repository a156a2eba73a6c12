//! Builds flattened device trees byte by byte, from the layout alone and not from the reader's types.

/// A tree in the making.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    structure: Vec<u8>,
    strings: Vec<u8>,
    has_controller: bool,
}

/// The phandle of the interrupt controller that all nodes have unless they say otherwise.
pub const CONTROLLER: u32 = 0x8002;

impl Tree {
    /// A tree whose root is open, with cells of 64 bits. Interrupts are those of [`CONTROLLER`], a GIC that
    /// [`finish`](Self::finish) adds where there is none by then.
    pub fn new() -> Self {
        Self::default()
            .begin("")
            .cells("#address-cells", &[2])
            .cells("#size-cells", &[2])
            .cells("interrupt-parent", &[CONTROLLER])
    }

    /// The interrupt controller, whose interrupts are of `cells` cells. Left open.
    #[must_use]
    pub fn controller(mut self, cells: u32) -> Self {
        self.has_controller = true;
        self.begin("intc@8000000")
            .text("compatible", "arm,gic-v3")
            .cells("#interrupt-cells", &[cells])
            .cells("#address-cells", &[2])
            .cells("#size-cells", &[2])
            .property("ranges", &[])
            .cells("phandle", &[CONTROLLER])
    }

    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn pad(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }

    /// Opens a node.
    #[must_use]
    pub fn begin(mut self, name: &str) -> Self {
        self.word(1);
        self.structure.extend(name.as_bytes());
        self.structure.push(0);
        self.pad();
        self
    }

    /// Closes it.
    #[must_use]
    pub fn end(mut self) -> Self {
        self.word(2);
        self
    }

    /// A token that means nothing.
    #[must_use]
    pub fn nop(mut self) -> Self {
        self.word(4);
        self
    }

    /// A property.
    #[must_use]
    pub fn property(mut self, name: &str, value: &[u8]) -> Self {
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.word(3);
        self.word(value.len() as u32);
        self.word(at);
        self.structure.extend(value);
        self.pad();
        self
    }

    /// A property of numbers.
    #[must_use]
    pub fn cells(self, name: &str, cells: &[u32]) -> Self {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value)
    }

    /// A property of one string, or several with zeros between them.
    #[must_use]
    pub fn text(self, name: &str, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.property(name, &value)
    }

    /// The bytes, the root closed.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.has_controller {
            self = self.controller(3).end();
        }
        self.word(2);
        self.word(9);
        let (header, reservations) = (40u32, 16u32);
        let structure = header + reservations;
        let strings = structure + self.structure.len() as u32;
        let total = strings + self.strings.len() as u32;
        let words = [
            0xd00d_feed,
            total,
            structure,
            strings,
            header,
            17,
            16,
            0,
            self.strings.len() as u32,
            self.structure.len() as u32,
        ];
        let mut bytes: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_be_bytes())
            .collect();
        bytes.extend([0; 16]);
        bytes.extend(self.structure);
        bytes.extend(self.strings);
        bytes
    }

    /// An SMMUv3 at a 64-bit address, with the interrupts of QEMU's virt board. Left open.
    #[must_use]
    pub fn smmu(self, phandle: u32, base: u64) -> Self {
        let (high, low) = ((base >> 32) as u32, base as u32);
        self.begin(&format!("smmuv3@{base:x}"))
            .text("compatible", "arm,smmu-v3")
            .cells("reg", &[high, low, 0, 0x2_0000])
            .cells("interrupts", &[0, 74, 1, 0, 75, 1, 0, 76, 1, 0, 77, 1])
            .text("interrupt-names", "eventq\0priq\0cmdq-sync\0gerror")
            .cells("#iommu-cells", &[1])
            .cells("phandle", &[phandle])
    }

    /// A PCI host bridge with all buses. Left open.
    #[must_use]
    pub fn host(self, base: u64) -> Self {
        let (high, low) = ((base >> 32) as u32, base as u32);
        self.begin(&format!("pcie@{base:x}"))
            .text("compatible", "pci-host-ecam-generic")
            .text("device_type", "pci")
            .cells("reg", &[high, low, 0, 0x1000_0000])
            .cells("bus-range", &[0, 0xff])
    }

    /// Interrupt translation services.
    #[must_use]
    pub fn its(self, phandle: u32, base: u32) -> Self {
        self.begin(&format!("its@{base:x}"))
            .text("compatible", "arm,gic-v3-its")
            .cells("reg", &[0, base, 0, 0x2_0000])
            .cells("#msi-cells", &[1])
            .cells("phandle", &[phandle])
            .end()
    }
}

/// What QEMU 10 gives its virt board with an SMMUv3, as far as it is about IOMMUs.
pub fn virt() -> Tree {
    Tree::new()
        .text("compatible", "linux,dummy-virt")
        .begin("memory@40000000")
        .text("device_type", "memory")
        .cells("reg", &[0, 0x4000_0000, 0, 0x4000_0000])
        .end()
        .controller(3)
        .its(0x8003, 0x808_0000)
        .end()
        // The host bridge stands before the SMMU.
        .host(0x40_1000_0000)
        .cells("iommu-map", &[0, 0x8004, 0, 0x1_0000])
        .cells("msi-map", &[0, 0x8003, 0, 0x1_0000])
        .property("dma-coherent", &[])
        .end()
        .smmu(0x8004, 0x905_0000)
        .property("dma-coherent", &[])
        .end()
}
